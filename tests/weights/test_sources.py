"""Files, folders, shards and the hub: what is opened, and what is said when there is nothing."""

import json
import sys
import types

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from animate_jax.errors import UserError
from animate_jax.weights.sources import open_state_dict, resolve_source
from animate_jax.weights.torch_file import write_torch_file


def save(path, value: float, name: str = "w"):
    """One tensor of three equal values, in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: torch.full((3,), value)}, path)
    else:
        write_torch_file(path, {name: np.full(3, value, np.float32)})
    return path


def opened(path, *names) -> float:
    return float(open_state_dict(path, names)["w"].read()[0])


def raw_safetensors(path, header, data: bytes):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "dtype",
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 "
    "uint16 uint32 uint64 bool complex64".split(),
)
def test_safetensors_of_every_dtype_read_as_saved(tmp_path, dtype):
    values = (torch.arange(24) * 5 - 40).reshape(2, 3, 4).to(getattr(torch, dtype))
    state = {"a": values, "scalar": values[0, 0, 0].clone(), "empty": values[:0].clone()}
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt"})
    ours = open_state_dict(tmp_path / "w.safetensors")
    assert set(ours) == set(state)
    for name, tensor in state.items():
        array = ours[name].read()
        assert str(array.dtype) == dtype and array.dtype == ours[name].dtype
        assert array.shape == ours[name].shape == tuple(tensor.shape)
        assert array.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_what_was_downloaded_instead_of_weights_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    with pytest.raises(UserError, match="Git LFS pointer, .* git lfs pull"):
        open_state_dict(file)
    file.write_text("<!DOCTYPE html><html>sign in</html>")
    with pytest.raises(UserError, match="web page"):
        open_state_dict(file)


def test_content_decides_the_format_not_the_suffix(tmp_path):
    save(tmp_path / "a.safetensors", 1).rename(tmp_path / "a.bin")
    save(tmp_path / "b.pth", 2).rename(tmp_path / "b.safetensors")
    assert opened(tmp_path / "a.bin") == 1
    assert opened(tmp_path / "b.safetensors") == 2


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header, message",
    [
        ({"w": ENTRY | {"shape": [3]}}, "'w' has a length"),
        ({"w": ENTRY | {"shape": [-2]}}, "'w' has a damaged shape"),
        ({"w": ENTRY | {"shape": [True, 2]}}, "'w' has a damaged shape"),
        ({"w": ENTRY | {"shape": [1] * 50 + [2]}}, "'w' has a damaged shape"),
        ({"w": ENTRY | {"data_offsets": [4, 12]}}, "ends before the tensor 'w'"),
        ({"w": ENTRY | {"data_offsets": [8, 0]}}, "'w' has a length"),
        ({"w": ENTRY | {"data_offsets": [-8, 0]}}, "'w' has a damaged"),
        ({"w": ENTRY | {"data_offsets": [0]}}, "'w' has a damaged"),
        ({"w": ENTRY | {"dtype": "F7"}}, "unknown dtype 'F7'"),
        ({"w": ENTRY | {"dtype": ["F32"]}}, "unknown dtype"),
        ({"w": 3}, "'w' has a damaged"),
        ({"w": {}}, "'w' has a damaged"),
        (b'{"w": {}, "w": {}}', "a name occurs twice"),
        (b'{"w": ', "damaged safetensors header"),
        (b"{" + b'"a":{' * 100_000, "damaged safetensors header"),
    ],
)
def test_inconsistent_safetensors_are_refused(tmp_path, header, message):
    path = raw_safetensors(tmp_path / "w.safetensors", header, bytes(8))
    with pytest.raises(UserError, match=message) as caught:
        open_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_safetensors_are_refused_wherever_they_end(tmp_path):
    content = save(tmp_path / "w.safetensors", 1).read_bytes()
    for end in range(len(content)):
        (tmp_path / "cut.safetensors").write_bytes(content[:end])
        with pytest.raises(UserError):
            open_state_dict(tmp_path / "cut.safetensors")


def test_folders_give_full_precision_before_half_and_safetensors_before_torch(tmp_path):
    order = [
        "denoising_unet.pth",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.bin",
        "model.safetensors",
        "pytorch_model.bin",
    ]
    for value, name in enumerate(order):
        save(tmp_path / name, value)
    save(tmp_path / "reference_unet.pth", 99)
    for value, name in enumerate(order):
        assert opened(tmp_path, "denoising_unet") == value
        (tmp_path / name).unlink()
    # What is left is another network: taken only where no name is asked for.
    with pytest.raises(UserError, match="reference_unet.pth; none is named denoising_unet"):
        open_state_dict(tmp_path, ["denoising_unet"])
    assert opened(tmp_path) == 99
    save(tmp_path / "pose_guider.pth", 98)
    with pytest.raises(UserError, match="holds pose_guider.pth, reference_unet.pth; give the one"):
        open_state_dict(tmp_path)


def test_folders_and_files_without_weights_are_errors(tmp_path):
    with pytest.raises(UserError, match="holds no weight files"):
        open_state_dict(tmp_path)
    with pytest.raises(UserError, match="there is no such file"):
        open_state_dict(tmp_path / "absent.pth")
    (tmp_path / "config.json").write_text('{"sample_size": 64}')
    with pytest.raises(UserError, match="no index of a sharded checkpoint"):
        open_state_dict(tmp_path / "config.json")


@pytest.mark.parametrize(
    "suffix, index",
    [
        (".safetensors", "diffusion_pytorch_model.safetensors.index.json"),
        (".bin", "pytorch_model.bin.index.json"),
        (".safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"),
        (".safetensors", "model.fp16.safetensors.index.json"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_sharded_checkpoints_open_as_one(tmp_path, suffix, index, prefix):
    for shard in (1, 2):
        save(tmp_path / f"part-{shard}-of-2{suffix}", shard, f"{prefix}w{shard}")
    weight_map = {f"{prefix}w{shard}": f"part-{shard}-of-2{suffix}" for shard in (2, 1)}
    (tmp_path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for path in (tmp_path, tmp_path / index):
        tensors = open_state_dict(path)
        assert list(tensors) == ["w2", "w1"]
        assert [float(t.read()[0]) for t in tensors.values()] == [2, 1]


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({"w": "part.safetensors", "v": "part.safetensors"}, "'v' is not in its shard part"),
        ({"w": "absent.safetensors"}, "shard absent.safetensors is missing"),
        ({"w": "../part.safetensors"}, "not a file beside it"),
        ({"w": "/part.safetensors"}, "not a file beside it"),
        ({"w": 3}, "not a file beside it"),
        ({"w": "model.safetensors.index.json"}, "is an index, not a shard"),
        ([1], "no weight_map"),
    ],
)
def test_inconsistent_shards_are_refused(tmp_path, weight_map, message):
    save(tmp_path / "part.safetensors", 1)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        open_state_dict(index)


def test_local_sources_are_taken_as_they_are(tmp_path, monkeypatch):
    assert resolve_source(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "w.pth", 1)
    assert resolve_source("~/w.pth") == tmp_path / "w.pth"
    with pytest.raises(UserError, match="absent: does not exist"):
        resolve_source(str(tmp_path / "absent"))


class Hub:
    """Stands for the hub: a repository whose files are copied to a folder when patterns match."""

    def __init__(self, folder, *files):
        self.folder, self.files, self.calls = folder, files, []

    def snapshot_download(self, repo_id, *, revision, allow_patterns, ignore_patterns):
        self.calls.append((repo_id, revision))
        chosen = filter_repo_objects(
            self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        self.folder.mkdir(exist_ok=True)
        for name in chosen:
            save(self.folder / name, 1)
        return str(self.folder)

    def model_info(self, repo_id, *, revision, timeout):
        files = [types.SimpleNamespace(rfilename=name) for name in self.files]
        return types.SimpleNamespace(siblings=files)

    def fetched(self) -> set[str]:
        files = (p for p in self.folder.rglob("*") if p.is_file())
        return {str(p.relative_to(self.folder)) for p in files}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    def install(*files):
        hub = Hub(tmp_path / "snapshot", *files)
        module = types.SimpleNamespace(
            snapshot_download=hub.snapshot_download, model_info=hub.model_info
        )
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        return hub

    return install


VAE = [
    "config.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "README.md",
]


@pytest.mark.parametrize(
    "files, wanted",
    [
        (VAE, {"config.json", "diffusion_pytorch_model.safetensors"}),
        (["config.json", "a.bin", "a.fp16.bin"], {"config.json", "a.bin"}),
        (["config.json", "m.fp16.safetensors"], {"config.json", "m.fp16.safetensors"}),
        (["pose_guider.pth", "notes.md"], {"pose_guider.pth"}),
        ([*VAE, "unet/config.json", "unet/model.safetensors"], {VAE[0], VAE[2]}),
        (["model.bin", "unet/model.safetensors"], {"model.bin"}),
    ],
)
def test_one_set_of_weights_is_downloaded(hub, files, wanted):
    fake = hub(*files)
    assert resolve_source("hf:owner/some-name_1.5") == fake.folder
    assert fake.fetched() == wanted
    assert set(fake.calls) == {("owner/some-name_1.5", None)}


@pytest.mark.parametrize("text, folder", [("hf:owner/name", ""), ("hf:owner/name@v1:old", "old/")])
def test_several_weights_are_refused_before_the_download(hub, text, folder):
    fake = hub("old/config.json", *(f"{folder}{name}" for name in ("mm_v14.ckpt", "mm_v15.ckpt")))
    one = f"{text}/mm_v14.ckpt" if folder else f"{text}:mm_v14.ckpt"
    with pytest.raises(UserError, match=f"holds mm_v14.ckpt, mm_v15.ckpt; name one, .* {one}$"):
        resolve_source(text)
    assert all(name.endswith(".json") for name in fake.fetched())
    assert resolve_source(one).name == "mm_v14.ckpt"


def test_revision_folder_and_patterns_of_a_hub_source(hub):
    fake = hub("unet/config.json", "unet/m.safetensors", "vae/m.safetensors", "m.safetensors")
    path = resolve_source("hf:owner/name@refs/pr/1:unet")
    assert path == fake.folder / "unet" and fake.calls == [("owner/name", "refs/pr/1")]
    assert fake.fetched() == {"unet/config.json", "unet/m.safetensors"}
    resolve_source("hf:owner/name:vae", patterns=["*.safetensors"])
    assert fake.fetched() == {"unet/config.json", "unet/m.safetensors", "vae/m.safetensors"}


def test_a_hub_source_may_be_one_file(hub):
    fake = hub("v2/mm_v15.ckpt", "v2/mm_v14.ckpt", "mm_v15.ckpt")
    path = resolve_source("hf:owner/motion:v2/mm_v15.ckpt")
    assert path == fake.folder / "v2/mm_v15.ckpt" and fake.fetched() == {"v2/mm_v15.ckpt"}
    assert opened(path) == 1


@pytest.mark.parametrize(
    "text", ["hf:name", "hf:", "hf:a/b/c", "hf:a/b@", "hf:a/b:../c", "hf:a/b:/etc", "hf:a/b c"]
)
def test_malformed_hub_sources_are_refused_before_any_request(hub, text):
    fake = hub()
    with pytest.raises(UserError, match="is not of the form hf:owner/name"):
        resolve_source(text)
    assert not fake.calls


def test_a_folder_that_the_repository_lacks_is_an_error(hub):
    hub("unet/config.json")
    with pytest.raises(UserError, match="hf:owner/name:vae: the repository has nothing"):
        resolve_source("hf:owner/name:vae")


class Unreachable(ConnectionError):
    pass


def hub_failure(kind):
    error = kind.__new__(kind)
    error.args = ("404 Client Error.\n\nRequest ID: 1\nlong explanation",)
    return error


@pytest.mark.parametrize(
    "kind, message",
    [
        (hub_errors.GatedRepoError, "needs its terms accepted"),
        (hub_errors.RepositoryNotFoundError, "was not found, or is private"),
        (hub_errors.RevisionNotFoundError, "has no such revision"),
        (hub_errors.OfflineModeIsEnabled, "offline mode is on"),
        (hub_errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (hub_errors.HFValidationError, "is not a repository name"),
        (Unreachable, "the hub cannot be reached"),
        (RuntimeError, r"cannot be downloaded \(404 Client Error.\)"),
    ],
)
def test_failures_of_the_hub_become_one_line(monkeypatch, kind, message):
    def fail(*_, **__):
        raise hub_failure(kind)

    for request in ("snapshot_download", "model_info"):
        monkeypatch.setattr(huggingface_hub, request, fail)
    with pytest.raises(UserError, match=f"hf:owner/name: .*{message}") as caught:
        resolve_source("hf:owner/name")
    assert "\n" not in str(caught.value)


def test_the_real_client_offline_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf:owner/name: is not on this machine"):
        resolve_source("hf:owner/name", patterns=["*.json"])


def test_without_the_client_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        resolve_source("hf:owner/name")


def test_bfloat16_survives_from_safetensors_to_torch(tmp_path):
    state = {"w": torch.linspace(-3, 3, 50).bfloat16()}
    save_file(state, tmp_path / "w.safetensors")
    tensors = open_state_dict(tmp_path / "w.safetensors")
    assert tensors["w"].dtype == ml_dtypes.bfloat16
    write_torch_file(tmp_path / "w.pth", tensors)
    assert torch.equal(torch.load(tmp_path / "w.pth", weights_only=True)["w"], state["w"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_prefix_of_every_name_is_left_out(tmp_path, suffix):
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        assert opened(save(tmp_path / f"w{suffix}", 3.0, f"{prefix}w")) == 3.0
    average = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2)).state_dict()
    for prefix in ("", "module.", "_orig_mod."):
        state = {prefix + name: tensor.numpy() for name, tensor in average.items()}
        write_torch_file(tmp_path / "average.pth", state)
        assert set(open_state_dict(tmp_path / "average.pth")) == {"weight", "bias"}
    both = {"module.a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}
    write_torch_file(tmp_path / "both.pth", both)
    assert set(open_state_dict(tmp_path / "both.pth")) == set(both)
