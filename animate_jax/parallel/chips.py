"""What chips can do, as their makers publish it."""

from __future__ import annotations

import dataclasses

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of one JAX device; a v7x chip is two of them, each with half of everything."""

    flops: float  # FLOP/s of dense bfloat16 products
    memory: float = 0  # bytes
    clock: float = 0  # Hz: that which its matrix units reach `flops` at
    links: float = 0  # bytes/s to other chips of its slice, all links together


# Device kind, or how it begins.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * GIB, 1.05e9, 300e9),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 1.5e9, 200e9),
    "TPU v5": Chip(459e12, 95 * GIB, 1.75e9, 600e9),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1.75e9, 448e9),
    "TPU7x": Chip(1153e12, 96 * GIB, 2.2e9, 600e9),
    "NVIDIA H100": Chip(989e12),
    "NVIDIA H200": Chip(989e12),
    "NVIDIA A100": Chip(312e12),
    "NVIDIA L4": Chip(121e12),
    "Tesla T4": Chip(65e12),
}


def chip_of(device: jax.Device) -> Chip | None:
    """What is known of a device, None where nothing is."""
    matches = [name for name in CHIPS if device.device_kind.startswith(name)]
    return CHIPS[max(matches, key=len)] if matches else None


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device, None where it is not known."""
    chip = chip_of(device)
    return chip and chip.flops
