"""Where weights come from: files of either format, folders, shards, and the Hugging Face hub."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from animate_jax.errors import UserError
from animate_jax.weights.lazy_tensor import LazyTensor
from animate_jax.weights.safetensors_file import read_safetensors_file
from animate_jax.weights.torch_file import OTHER_FORMATS, read_torch_file

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_INDEX = ".index.json"

_HUB = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<folder>[^:]+))?"
)
_HUB_FORM = "hf:owner/name[@revision][:folder]"
# Tried in turn until weights arrive: repositories repeat theirs by format and precision.
_DESCRIPTIONS = ("*.json", "*.txt")
_ATTEMPTS = (
    (("*.safetensors",), ("*.fp16.*", "*non_ema*")),
    (("*.bin", "*.pth", "*.pt", "*.ckpt"), ("*.fp16.*", "*non_ema*")),
    (("*.safetensors",), ()),
    (("*.bin", "*.pth", "*.pt", "*.ckpt"), ()),
)
_HUB_ERRORS = {
    "GatedRepoError": "needs its terms accepted on its page and a login (`hf auth login`)",
    "RepositoryNotFoundError": "was not found, or is private and needs a login (`hf auth login`)",
    "RevisionNotFoundError": "has no such revision",
    "HFValidationError": "is not a repository name; write " + _HUB_FORM,
    "OfflineModeIsEnabled": "is not on this machine and offline mode is on (HF_HUB_OFFLINE)",
    "LocalEntryNotFoundError": "is not on this machine and the hub cannot be reached",
    "ConnectionError": "cannot be downloaded: the hub cannot be reached",
    "ConnectError": "cannot be downloaded: the hub cannot be reached",
    "TimeoutException": "cannot be downloaded: the hub does not answer",
}


def open_state_dict(path: str | Path, names: Sequence[str] = ()) -> dict[str, LazyTensor]:
    """The tensors of a weight file, of a sharded checkpoint's `*.index.json`, or of a folder.

    What a file holds decides how it is read, not its suffix. In a folder the file is the first
    that exists of `names` (without suffix), then of the names diffusers and transformers use;
    full precision before `.fp16.`, safetensors before PyTorch. Without `names`, a folder's only
    weight file is taken whatever it is called. Raises UserError where nothing fits.
    """
    path = Path(path)
    if path.is_dir():
        path = _pick(path, tuple(names))
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give a weight file or a folder with one")
    return _without_prefix(_open_shards(path) if _sniff(path) == "index" else _open_file(path))


def _open_file(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file under the names that they have in it."""
    return (read_safetensors_file if _sniff(path) == "safetensors" else read_torch_file)(path)


def _without_prefix(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Without what DistributedDataParallel, torch.compile and AveragedModel put before every name,
    and without the number of averages that the last of them adds."""
    prefixes = "module.", "_orig_mod."  # one within the other, in any order
    while True:
        named = {name: t for name, t in tensors.items() if name != "n_averaged"}
        prefix = _common(named, prefixes) if named else None
        if prefix is None:
            return tensors
        tensors = {name.removeprefix(prefix): t for name, t in named.items()}


def _common(names, prefixes):
    return next((p for p in prefixes if all(name.startswith(p) for name in names)), None)


def resolve_source(text: str, *, patterns: Iterable[str] | None = None) -> Path:
    """A local path as it is, or `hf:owner/name[@revision][:folder]` downloaded from the hub.

    `patterns` (such as "*.json", relative to the folder) say what to download. Without them it is
    the folder's own descriptions and one set of weights, not what lies in folders within it:
    safetensors in full precision if there are any, else PyTorch files, else half precision. The
    folder may also be a single weight file. Returns an existing path; raises UserError where there
    is none, where several weights lie side by side, before any is downloaded, or where the
    download fails.
    """
    if not text.startswith("hf:"):
        path = Path(text).expanduser()
        if not path.exists():
            raise UserError(f"{text}: does not exist; give a path, or {_HUB_FORM} to download")
        return path
    match = _HUB.fullmatch(text)
    folder = PurePosixPath((match and match["folder"]) or ".")
    if not match or folder.is_absolute() or ".." in folder.parts:
        raise UserError(f"{text}: is not of the form {_HUB_FORM}")
    repository, revision = match["repository"], match["revision"]
    listed = []
    if folder.suffix in _SUFFIXES:
        attempts = [((str(folder),), ())]
    elif patterns is not None:
        attempts = [(_within(folder, patterns), ())]
    else:
        listed = _listed(repository, revision)
        # The hub's star takes in slashes: without this, all of a pipeline's networks match.
        nested = str(folder / "*" / "*")
        attempts = [
            (_within(folder, (*_DESCRIPTIONS, *allowed)), (*ignored, nested))
            for allowed, ignored in _ATTEMPTS
        ]
    for allowed, ignored in attempts:
        _refuse_several(text, _matching(listed, allowed, ignored))
        path = _download(text, repository, revision, allowed, ignored) / folder
        if patterns is not None or _weight_files(path):
            break
    if not path.exists():
        raise UserError(f"{text}: the repository has nothing of that name to download")
    return path


def _listed(repository: str, revision: str | None) -> list[str]:
    """Names of a repository's files; none where they cannot be had: the download says why."""
    try:
        from huggingface_hub import model_info  # list_repo_files asks six times where none answers

        files = model_info(repository, revision=revision, timeout=10).siblings or []
        return [file.rfilename for file in files]
    except Exception:
        return []


def _matching(names: list[str], allowed: tuple[str, ...], ignored: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored))


def _refuse_several(text: str, names: Iterable[str]) -> None:
    """Raises UserError where nothing says which of several weights of a folder is meant."""
    weights = sorted(name for name in names if name.endswith(_SUFFIXES))
    files = [PurePosixPath(name).name for name in weights]
    if len(files) > 1 and not any(file.startswith(_STEMS) for file in files):
        place = text.split(":", 2)[1]
        raise UserError(
            f"{text}: holds {', '.join(files[:8])}; name one, such as hf:{place}:{weights[0]}"
        )


def _within(folder: PurePosixPath, patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(folder / pattern) for pattern in patterns)


def _download(
    text: str,
    repository: str,
    revision: str | None,
    allowed: tuple[str, ...],
    ignored: tuple[str, ...],
) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{text}: downloading needs `pip install huggingface_hub`") from error
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(allowed),
            ignore_patterns=list(ignored) or None,
        )
    except Exception as error:
        # Their modules move between versions of the library; their names have stayed.
        kinds = [kind.__name__ for kind in type(error).__mro__]
        known = next((_HUB_ERRORS[kind] for kind in kinds if kind in _HUB_ERRORS), None)
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{text}: {known or f'cannot be downloaded ({first_line})'}") from error
    return Path(folder)


def _sniff(path: Path) -> str:
    """What a file holds: "torch", "safetensors" or "index"; "torch" also where it is neither."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            size = file.seek(0, 2)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head.lstrip().startswith(b"{"):
        return "index"
    known = head.startswith((b"PK", *(magic for magic, _ in OTHER_FORMATS)))
    return "safetensors" if path.suffix == ".safetensors" and not known else "torch"


def _pick(folder: Path, names: tuple[str, ...]) -> Path:
    for stem in (*names, *_STEMS):
        for variant in ("", ".fp16"):
            for suffix in _SUFFIXES:
                for name in (
                    f"{stem}{variant}{suffix}",
                    f"{stem}{variant}{suffix}{_INDEX}",
                    f"{stem}{suffix}.index{variant}.json",
                ):
                    if (folder / name).is_file():
                        return folder / name
    files = _weight_files(folder)
    if len(files) == 1 and not names:
        return files[0]
    found = ", ".join(file.name for file in files[:8]) or "no weight files"
    wanted = f"none is named {' or '.join(names)}" if names else "give the one to use"
    raise UserError(f"{folder}: holds {found}; {wanted if files else 'give another folder'}")


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, sorted; a path that is one itself counts."""
    candidates = [folder] if folder.is_file() else folder.glob("*")
    return sorted(p for p in candidates if p.suffix in _SUFFIXES and p.is_file())


def _open_shards(path: Path) -> dict[str, LazyTensor]:
    try:
        index = json.loads(path.read_bytes())
        shard_of = dict(index["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is no index of a sharded checkpoint (no weight_map)") from error
    for name in shard_of.values():
        if type(name) is not str or Path(name).name != name or "\\" in name:
            raise UserError(f"{path}: names the shard {name!r}, which is not a file beside it")
    shards = {}
    for name in sorted(set(shard_of.values())):
        shard = path.parent / name
        if not shard.is_file():
            raise UserError(f"{path}: its shard {name} is missing; get the whole checkpoint")
        if _sniff(shard) == "index":
            raise UserError(f"{shard}: is an index, not a shard")
        shards[name] = _open_file(shard)
    for key, name in shard_of.items():
        if key not in shards[name]:
            raise UserError(f"{path}: the tensor {key!r} is not in its shard {name}")
    return {key: shards[name][key] for key, name in shard_of.items()}
