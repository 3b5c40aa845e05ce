"""Protocols of the literature, as data: `protocols/*.json`, each with its sources.

What the literature leaves open is null there, and the command's own default holds.
"""

from __future__ import annotations

import json
from pathlib import Path

DIRECTORY = Path(__file__).parent / "protocols"
PROTOCOLS = tuple(sorted(path.stem for path in DIRECTORY.glob("*.json")))
# What a protocol may decide, with the names of the command's options.
SETTINGS = ("width", "height", "frames", "stride", "window_frames", "window_stride")


def read_protocol(name: str) -> dict:
    """One of PROTOCOLS: title, data, split, settings, notes and sources."""
    return json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
