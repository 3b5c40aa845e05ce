"""Where the networks that estimate poses come from and where they are kept.

BlazePose's two .tflite files (Apache-2.0) travel inside the mediapipe wheel on the Python package
index; the wheel is only unpacked, never installed or imported. DWPose's two .onnx files come from
the Hugging Face hub.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from animate_jax.errors import UserError
from animate_jax.files import cache_directory, replacing

WHEEL = "mediapipe==0.10.21"
WHEEL_TAGS = (
    *("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
    *("--platform", "manylinux_2_28_x86_64"),
)
# File name -> (its folder in the wheel, SHA-256).
BLAZEPOSE_FILES = {
    "pose_detection.tflite": (
        "mediapipe/modules/pose_detection",
        "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    ),
    "pose_landmark_full.tflite": (
        "mediapipe/modules/pose_landmark",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
}
DWPOSE_REPOSITORY = "yzd-v/DWPose"
DWPOSE_FILES = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")
FETCH = "animate-jax fetch pose-models"


def fetch_pose_models(source: str | os.PathLike | None = None) -> tuple[Path, Path]:
    """Installs the BlazePose files into the cache; returns (detector, landmarks) paths.

    Files that are there already are kept. Without `source` pip downloads the wheel (36 MB, pip
    shows the progress); `source` may be that wheel, or a directory that holds the wheel or the two
    .tflite files, for machines without a package index. Every file is checked against its SHA-256
    before it is installed. Raises UserError when something is missing or differs.
    """
    installed = _installed()
    if all(path.is_file() and _sha256(path.read_bytes()) == _expected(path) for path in installed):
        return installed
    if source is not None:
        contents = _from_source(Path(source))
    else:
        with tempfile.TemporaryDirectory() as directory:
            contents = _from_wheel(_download(Path(directory)))
    for path in installed:
        if _sha256(contents[path.name]) != _expected(path):
            raise UserError(
                f"{path.name} is not the file that was published (its SHA-256 differs); fetch the"
                f" {WHEEL} wheel again"
            )
    for path in installed:
        with replacing(path) as temporary:
            temporary.write_bytes(contents[path.name])
    return installed


def blazepose_model_paths(
    det: str | os.PathLike | None = None, pose: str | os.PathLike | None = None
) -> tuple[Path, Path]:
    """(detector, landmarks) .tflite paths: those given, else those in the cache.

    Raises UserError when one is missing.
    """
    paths = [
        Path(own) if own else kept for own, kept in zip((det, pose), _installed(), strict=True)
    ]
    for path, own in zip(paths, (det, pose), strict=True):
        if not path.is_file():
            reason = "check the path" if own else f"run: {FETCH}"
            raise UserError(f"the pose network {path} is not there; {reason}")
    return paths[0], paths[1]


def dwpose_model_paths(
    det: str | os.PathLike | None = None, pose: str | os.PathLike | None = None
) -> tuple[Path, Path]:
    """(detector, pose network) .onnx paths: those given, else from the Hugging Face hub.

    The hub's own cache keeps them (217 MB and 134 MB). Raises UserError when one is missing.
    """
    paths = []
    for own, name in zip((det, pose), DWPOSE_FILES, strict=True):
        path = Path(own) if own else _from_hub(name)
        if not path.is_file():
            raise UserError(f"the pose network {path} is not there; check the path")
        paths.append(path)
    return paths[0], paths[1]


def _installed():
    directory = cache_directory() / "blazepose"
    detector, landmarks = (directory / name for name in BLAZEPOSE_FILES)
    return detector, landmarks


def _expected(path):
    return BLAZEPOSE_FILES[path.name][1]


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _download(directory):
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"pip is not in this environment; run: python -m ensurepip (or uv pip install pip), or"
            f" fetch the wheel of {WHEEL} elsewhere and run: {FETCH} --source WHEEL"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(directory), *WHEEL_TAGS, WHEEL]
    if subprocess.run(command, check=False).returncode:
        raise UserError(
            f"pip could not download {WHEEL}; check the network, or fetch that wheel elsewhere and"
            f" run: {FETCH} --source WHEEL"
        )
    return next(directory.glob("*.whl"))


def _from_source(source):
    if source.is_dir():
        found = {name: path for name in BLAZEPOSE_FILES for path in source.rglob(name)}
        if len(found) == len(BLAZEPOSE_FILES):
            return {name: path.read_bytes() for name, path in found.items()}
        wheels = sorted(source.glob("mediapipe-*.whl"))
        if not wheels:
            names = " and ".join(BLAZEPOSE_FILES)
            raise UserError(f"{source}: holds neither {names} nor a mediapipe wheel")
        source = wheels[-1]
    if not source.is_file():
        raise UserError(f"{source}: there is no such file; give a mediapipe wheel or a directory")
    return _from_wheel(source)


def _from_wheel(wheel):
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {
                name: archive.read(f"{folder}/{name}")
                for name, (folder, _) in BLAZEPOSE_FILES.items()
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError) as error:
        raise UserError(
            f"{wheel}: not the wheel of {WHEEL} ({error}); download it again"
        ) from error


def _from_hub(name):
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            "the dwpose backend needs huggingface_hub; run: pip install 'animate-jax[pose]'"
        ) from error
    try:
        return Path(hf_hub_download(DWPOSE_REPOSITORY, name))
    except Exception as error:  # of the network, its own kinds among them
        raise UserError(
            f"cannot download {name} from {DWPOSE_REPOSITORY} on the Hugging Face hub"
            f" ({type(error).__name__}); check the network, or name the file yourself"
        ) from error
