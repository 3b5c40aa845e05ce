"""Fixtures that several folders share: real clips and the networks that find poses in them."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling programs that then run for a moment, many of them the same
# ones in several tests and processes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
OWN_PROGRAMS = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OWN_PROGRAMS:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="animate-jax-programs-")
sys.path.insert(0, str(Path(__file__).parent))

import jax  # noqa: E402
import pytest  # noqa: E402
from etils.epath.backend import fsspec_backend  # noqa: E402
from fsspec.implementations.dirfs import DirFileSystem  # noqa: E402
from fsspec.implementations.local import LocalFileSystem  # noqa: E402
from media import pose2sim_videos  # noqa: E402

from animate_jax.pose.estimate import load_estimator  # noqa: E402
from animate_jax.pose.models import fetch_pose_models  # noqa: E402


def pytest_unconfigure():
    if OWN_PROGRAMS:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go():
    """After each file: a process that holds those of all files runs out of memory mappings."""
    yield
    jax.clear_caches()
    gc.collect()


class LocalBucket(DirFileSystem):
    """A folder that stands for gs://."""

    def _join(self, path):
        return super()._join(path.removeprefix("gs://") if isinstance(path, str) else path)


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    """The folder of all of gs://, which holds the bucket `bucket`."""
    root = tmp_path / "buckets"
    (root / "bucket").mkdir(parents=True)
    local = LocalFileSystem()
    remote = LocalBucket(os.fspath(root), local)
    monkeypatch.setattr(
        type(fsspec_backend), "fs", lambda _, path: remote if "://" in str(path) else local
    )
    return root


@pytest.fixture(scope="session")
def media_cache(request):
    """$ANIMATE_JAX_CACHE, or pytest's own cache, set as the cache for the whole session."""
    default = request.config.cache.mkdir("animate_jax")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANIMATE_JAX_CACHE", os.environ.get("ANIMATE_JAX_CACHE") or str(default))
        yield Path(os.environ["ANIMATE_JAX_CACHE"])


@pytest.fixture(scope="session")
def blazepose_models(media_cache):
    return fetch_pose_models()


@pytest.fixture(scope="session")
def clips(media_cache):
    return pose2sim_videos(media_cache)


@pytest.fixture(scope="session")
def estimator(blazepose_models):
    det, pose = blazepose_models
    return load_estimator("blazepose", det=det, pose=pose)
