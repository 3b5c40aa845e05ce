"""Pictures to what the networks take: resized by Pillow, as in PyTorch pipelines; normalised."""

from __future__ import annotations

import numpy as np
from PIL import Image

from animate_jax.config import ImageEncoderConfig

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

# The largest logarithm of the ratio of proportions that count as the same. Pose tools round the
# sides of what they draw to multiples of 64, which changes them by up to ln(17 / 16) = 0.0606.
ALIKE = 0.061


def resize(picture: np.ndarray, width: int, height: int, resample: str) -> np.ndarray:
    """uint8 (H, W, 3) stretched to (height, width, 3)."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), FILTERS[resample]))


def fit_on_black(picture: np.ndarray, width: int, height: int, resample: str) -> np.ndarray:
    """uint8 (H, W, 3) as large as (height, width, 3) holds it, in the middle of black."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = [max(1, round(side * scale)) for side in picture.shape[:2]]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + size[0], left : left + size[1]] = resize(picture, *size[::-1], resample)
    return canvas


def fit_drawing(
    drawing: np.ndarray, reference: np.ndarray, width: int, height: int, resample: str
) -> np.ndarray:
    """A drawn skeleton for a video of (height, width): stretched as the reference (H, W, 3) will be
    where both have the same proportions, so that they still fit each other, else `fit_on_black`.

    Those that differ by 6 % are the same.
    """
    proportions = [picture.shape[1] / picture.shape[0] for picture in (drawing, reference)]
    alike = abs(np.log(proportions[0] / proportions[1])) <= ALIKE
    return (resize if alike else fit_on_black)(drawing, width, height, resample)


def image_encoder_pixels(
    picture: np.ndarray, config: ImageEncoderConfig, resample: str
) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (1, S, S, 3), normalised for the image encoder."""
    size = config.image_size
    pixels = resize(picture, size, size, resample).astype(np.float32) / 255
    mean, std = np.float32(config.image_mean), np.float32(config.image_std)
    return ((pixels - mean) / std)[None]


def autoencoder_pixels(picture: np.ndarray, width: int, height: int, resample: str) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (1, height, width, 3) in [-1, 1]."""
    return resize(picture, width, height, resample).astype(np.float32)[None] / 255 * 2 - 1


def skeleton_pixels(skeleton: np.ndarray, width: int, height: int, resample: str) -> np.ndarray:
    """uint8, or float in [0, 1], (H, W, 3) -> float32 (height, width, 3) in [0, 1]."""
    if skeleton.dtype == np.uint8:
        return resize(skeleton, width, height, resample).astype(np.float32) / 255
    if skeleton.shape[:2] == (height, width):
        return skeleton.astype(np.float32)
    drawn = np.round(np.clip(skeleton, 0, 1) * 255).astype(np.uint8)
    return resize(drawn, width, height, resample).astype(np.float32) / 255
