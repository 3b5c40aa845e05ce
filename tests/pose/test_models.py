import subprocess
import zipfile

import pytest

from animate_jax.errors import UserError
from animate_jax.pose import models


@pytest.fixture
def wheel(blazepose_models, tmp_path):
    """A wheel with the two real networks in their places."""
    path = tmp_path / "source" / "mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for file in blazepose_models:
            folder, _ = models.BLAZEPOSE_FILES[file.name]
            archive.write(file, f"{folder}/{file.name}")
    return path


def test_fetched_files_are_kept_in_the_cache(blazepose_models, media_cache):
    assert models.blazepose_model_paths() == blazepose_models
    assert all(path.parent == media_cache / "blazepose" for path in blazepose_models)


def test_offline_sources(wheel, blazepose_models, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    for i, source in enumerate((wheel, wheel.parent, blazepose_models[0].parent)):
        monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path / str(i)))
        with pytest.raises(UserError, match="animate-jax fetch pose-models"):
            models.blazepose_model_paths()
        fetched = models.fetch_pose_models(source)
        assert fetched == models.blazepose_model_paths() == models.fetch_pose_models()
        for ours, original in zip(fetched, blazepose_models, strict=True):
            assert ours.read_bytes() == original.read_bytes()
        assert len(list(fetched[0].parent.iterdir())) == 2


def test_damaged_files_are_fetched_again(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path / "cache"))
    detector, _ = models.fetch_pose_models(wheel)
    whole = detector.read_bytes()
    detector.write_bytes(whole[:100])
    models.fetch_pose_models(wheel)
    assert detector.read_bytes() == whole


def test_other_contents_are_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path / "cache"))
    forged, poor = tmp_path / "forged.whl", tmp_path / "poor.whl"
    with zipfile.ZipFile(forged, "w") as archive, zipfile.ZipFile(wheel) as original:
        for name in original.namelist():
            archive.writestr(name, original.read(name)[:-1] + b"!")
    with zipfile.ZipFile(poor, "w") as archive:
        archive.writestr("mediapipe/__init__.py", "")
    (tmp_path / "text.whl").write_text("not an archive")
    (tmp_path / "bare").mkdir()
    for source, words in (
        (forged, "SHA-256 differs"),
        (poor, "not the wheel"),
        (tmp_path / "text.whl", "not the wheel"),
        (tmp_path / "missing.whl", "no such file"),
        (tmp_path / "bare", "holds neither"),
    ):
        with pytest.raises(UserError, match=words):
            models.fetch_pose_models(source)
    assert not (tmp_path / "cache").exists()


def test_a_failing_download_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="--source WHEEL"):
        models.fetch_pose_models()


def test_an_environment_without_pip_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="ensurepip .* --source WHEEL"):
        models.fetch_pose_models()


def test_given_paths_must_exist(tmp_path):
    (tmp_path / "a.onnx").touch()
    with pytest.raises(UserError, match="missing.onnx is not there; check the path"):
        models.dwpose_model_paths(tmp_path / "a.onnx", tmp_path / "missing.onnx")
    assert models.dwpose_model_paths(tmp_path / "a.onnx", tmp_path / "a.onnx")[0].name == "a.onnx"
    with pytest.raises(UserError, match="missing.tflite is not there; check the path"):
        models.blazepose_model_paths(tmp_path / "missing.tflite", tmp_path / "a.onnx")


def test_dwpose_comes_from_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(repository, name):
        asked.append((repository, name))
        (tmp_path / name).touch()
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    det, pose = models.dwpose_model_paths()
    assert asked == [("yzd-v/DWPose", "yolox_l.onnx"), ("yzd-v/DWPose", "dw-ll_ucoco_384.onnx")]
    assert (det.name, pose.name) == ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")

    class ReadTimeout(Exception):
        """The network library's is no OSError either."""

    def offline(repository, name):
        raise ReadTimeout("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match="cannot download yolox_l.onnx"):
        models.dwpose_model_paths()
