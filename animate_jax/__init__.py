"""Animate Anyone in JAX: a picture of a character and a motion in, a video of both out."""

import importlib

_PLACES = {
    "AnimateAnyonePipeline": "animate_jax.inference.pipeline",
    "Keypoints": "animate_jax.pose.keypoints",
    "load_keypoints": "animate_jax.pose.keypoints",
    "load_model": "animate_jax.weights.model_directory",
}
__all__ = list(_PLACES)


def __getattr__(name: str):
    # Imported when asked for, so that the command line answers without waiting for JAX.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
