import os
from pathlib import Path

import pytest
from media import pose2sim_videos

from animate_jax.pose.estimate import load_estimator
from animate_jax.pose.models import fetch_pose_models


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
