"""What chips can do: peak matrix rates as their makers publish them, bfloat16, dense."""

from __future__ import annotations

import jax

# Device kind, or how it begins -> FLOP/s per JAX device (of a v4 or v7x chip there are two).
PEAK_FLOPS = {
    "TPU v4": 137.5e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device, None where it is not known."""
    kind = device.device_kind
    matches = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None
