"""Fixtures that several folders share: real clips and the networks that find poses in them."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent))

import pytest  # noqa: E402
from media import pose2sim_videos  # noqa: E402

from animate_jax.pose.estimate import load_estimator  # noqa: E402
from animate_jax.pose.models import fetch_pose_models  # noqa: E402


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
