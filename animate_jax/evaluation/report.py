"""A report of an evaluation: means with intervals, a table for the console, and the JSON file."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import numpy as np

from animate_jax.errors import UserError
from animate_jax.evaluation.score import METRICS
from animate_jax.files import replacing

RESAMPLES, BOOTSTRAP_SEED = 2000, 0
INTERVAL = "95 % percentile bootstrap over clips"


def mean_interval(values: Sequence[float], weights: Sequence[float] | None = None) -> dict:
    """{"mean", "interval", "clips"}: the interval from resampling clips, None for a single one.

    Frames of a clip resemble each other, so clips are what is drawn again. weights: of the clips,
    by default equal.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    interval = None
    if len(values) > 1:
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        chosen = rng.integers(len(values), size=(RESAMPLES, len(values)))
        drawn = np.average(values[chosen], 1, weights[chosen])
        interval = np.quantile(drawn, [0.025, 0.975]).tolist()
    mean = float(np.average(values, weights=weights))
    return {"mean": mean, "interval": interval, "clips": len(values)}


def make_report(
    settings: Mapping,
    rows: Sequence[Mapping],
    distances: Mapping[str, Mapping],
    left_out: Mapping[str, str],
) -> dict:
    """The report: `rows` are clips, with metrics and "frames" beside what tells the clip; or with
    the reason as "left_out".

    Means are over clips; those of DisCo's metrics are over frames, as there.
    """
    means = {}
    for name in METRICS:
        if having := [row for row in rows if name in row]:
            weights = [row["frames"] for row in having] if name.endswith("_disco") else None
            means[name] = mean_interval([row[name] for row in having], weights)
    return {
        "settings": dict(settings),
        "versions": _versions(),
        "interval": INTERVAL,
        "means": means,
        "distances": dict(distances),
        "left_out": dict(left_out),
        "clips": list(rows),
    }


def _versions():
    names = "animate-jax", "jax", "numpy", "pillow", "av"
    versions = {"python": platform.python_version(), "backend": jax.default_backend()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from its sources
            versions[name] = None
    return versions


def write_report(path: str | Path, report: Mapping) -> None:
    """Writes the report as JSON, whole or not at all; numbers that are none become null."""
    try:
        with replacing(path) as temporary:
            text = json.dumps(_plain(report), indent=1, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(report: Mapping) -> str:
    """The means and distances for the console, and what was left out and why."""
    unfit = [row for row in report["clips"] if "left_out" in row]
    lines = [f"{len(report['clips']) - len(unfit)} clips; {INTERVAL}"]
    for name, summary in report["means"].items():
        arrow = {True: "higher is better", False: "lower is better", None: ""}[METRICS[name]]
        interval = summary["interval"]
        around = f"{_number(interval[0])} .. {_number(interval[1])}" if interval else ""
        lines.append(f"{name:15s}{_number(summary['mean']):>10s}  {around:24s}{arrow}".rstrip())
    for name, summary in report["distances"].items():
        samples = f"{summary['samples']} samples"
        line = f"{name:15s}{_number(summary['value']):>10s}  {samples:24s}lower is better"
        lines.append(line)
    groups: dict[str, list[str]] = {}
    for name, reason in report["left_out"].items():
        groups.setdefault(reason, []).append(name)
    lines += [f"without {', '.join(names)}: {reason}" for reason, names in groups.items()]
    lines += [f"without the clip {row['name']}: {row['left_out']}" for row in unfit]
    return "\n".join(lines)


def _number(value):
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:.3e}"
