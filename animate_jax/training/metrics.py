"""What a run tells while it trains: WORKDIR/metrics.jsonl, TensorBoard events, and lines to read.

Only the first process writes. After a restart the file goes on where the checkpoint was, so that it
reads as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import jax
from etils import epath

from animate_jax.errors import UserNote

FLUSH_SECONDS = 10.0


class MetricsWriter:
    """Collects rows {name: number} by step; `write` often, `flush` at checkpoints, `close` last."""

    def __init__(self, workdir: epath.Path, first_step: int):
        """Goes on after `first_step`; 0 begins anew."""
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._file = workdir / "metrics.jsonl"
        before = read_metrics(workdir) if first_step else []
        self._rows = [row for row in before if row["step"] <= first_step]
        self._flushed = time.monotonic()
        self._target = workdir / "tensorboard"
        self._local = "://" not in os.fspath(workdir)
        # TensorBoard's writer knows local files only; what a bucket gets is copied there.
        self._events = os.fspath(self._target) if self._local else tempfile.mkdtemp()
        self._board = _tensorboard(self._events, first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row; its step is that of the state after it."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        self._rows.append({"step": step, "time": round(time.time(), 3), **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Everything so far to disk; a note where that cannot be done now, for training is worth
        more than its log, and the next time may do."""
        try:
            self._flush()
        except Exception as error:  # a bucket's are of many kinds
            reason = " ".join(str(error).split())
            note = f"{self._file}: cannot be written now ({reason})"
            warnings.warn(note, UserNote, stacklevel=2)
            self._flushed = time.monotonic()

    def _flush(self):
        if not self._active:
            return
        # The file is replaced as a whole.
        text = "".join(json.dumps(row) + "\n" for row in self._rows)
        temporary = self._file.parent / (self._file.name + ".tmp")
        temporary.write_text(text)
        temporary.replace(self._file)
        if self._board is not None:
            self._board.flush()
            if not self._local:
                self._target.mkdir(parents=True, exist_ok=True)
                for event in Path(self._events).iterdir():
                    epath.Path(event).copy(self._target / event.name, overwrite=True)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and lets go of everything."""
        if not self._active:
            return
        self.flush()
        if self._board is not None:
            self._board.close()
        if not self._local:
            shutil.rmtree(self._events, ignore_errors=True)


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """The rows of a workdir's metrics.jsonl, none where there is no such file."""
    file = epath.Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _tensorboard(directory, first_step):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None  # an extra; metrics.jsonl has the same numbers
    return SummaryWriter(directory, purge_step=first_step + 1 if first_step else None)
