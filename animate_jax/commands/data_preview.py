"""The `data-preview` command: what a training config's data looks like."""

from __future__ import annotations

import contextlib
from pathlib import Path

from animate_jax.data.input import training_batches
from animate_jax.data.preview import draw_preview
from animate_jax.errors import UserError
from animate_jax.files import check_file, replacing
from animate_jax.training.config import load_config
from animate_jax.training.stages import input_config


def data_preview(options) -> None:
    """Runs `animate-jax data-preview`; options as its parser gives them."""
    out = Path(options.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: previews are PNG pictures; end the name in .png")
    check_file(out, options.overwrite)
    config = input_config(load_config(options.config, options.overrides))
    with contextlib.closing(training_batches(config)) as batches:
        batch = next(batches)
    sheet = draw_preview(batch, [one.path for one in config.sets])
    with replacing(out) as temporary:
        sheet.save(temporary, "PNG")
    size = f"{config.width}x{config.height} pixels"
    print(f"wrote {out}: the first batch, {len(batch['frames'])} samples of {size}")
