"""What people see of a run: a bar, a line now and then, and why it stopped."""

from __future__ import annotations

import contextlib
import json
import time

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from animate_jax.errors import UserError
from animate_jax.parallel.chips import peak_flops
from animate_jax.parallel.count_flops import traced_flops
from animate_jax.training.metrics import MetricsWriter
from animate_jax.training.optimizer import learning_rate_schedule
from animate_jax.training.stages import Stage, parameter_counts
from animate_jax.training.step import Metrics


class Progress:
    """Follows the steps of a run; only the first process speaks and writes."""

    def __init__(
        self,
        stage: Stage,
        writer: MetricsWriter,
        workdir: epath.Path,
        first: int,
        pending: list,
        show: bool,
    ):
        """Goes on after step `first`, with what `pending` was then."""
        self._stage, self._writer, self._workdir = stage, writer, workdir
        self._config = stage.config
        self._first_process = jax.process_index() == 0
        self._rate = learning_rate_schedule(stage.optimizer_config, stage.config.steps)
        self._flops = 0.0
        self._tracing = False
        self._bar = tqdm(
            total=stage.config.steps,
            initial=first,
            desc="training",
            unit="step",
            disable=not (show and self._first_process),
            dynamic_ncols=True,
        )
        self.pending = pending  # loss and gradient norm of steps that are in no row yet
        self._begin()
        learned, frozen = parameter_counts(stage)
        sizes = ", ".join(f"{size} {name}" for name, size in stage.mesh.shape.items())
        self.say(f"{learned / 1e6:.1f} M parameters learn, {frozen / 1e6:.1f} M rest; mesh {sizes}")
        if first:
            self.say(f"going on after step {first}")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._first_process and not self._bar.disable:
            tqdm.write(line)

    def compile(self, step, state, frozen, batch):
        """The step compiled for its arguments."""
        start = time.monotonic()
        traced = step.trace(state, frozen, batch)
        compiled = traced.lower().compile()
        # XLA's own count knows nothing of kernels, and has what is computed again.
        self._flops = traced_flops(traced) / self._stage.mesh.size
        memory = compiled.memory_analysis()
        need = ""
        if memory is not None:
            size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            need = f", {size / 2**30:.2f} GiB a device"
        self.say(f"compiled the step in {time.monotonic() - start:.0f} s{need}")
        self._begin()
        return compiled

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for a batch."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def trace(self, step: int) -> None:
        """Starts and ends the trace that config.profile asks for."""
        first, last = self._config.profile
        if step == first and last >= first > 0:
            jax.profiler.start_trace(str(self._workdir / "profile"))
            self._tracing = True
        if self._tracing and step == last + 1:
            self._end_trace()

    def _end_trace(self):
        self._tracing = False
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # a bucket, a full disk: no reason to end a training
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            self.say(f"the trace could not be written ({reason})")
            return
        self.say(f"wrote a trace to {self._workdir / 'profile'}; TensorBoard shows it")

    def stopped(self, step: int, metrics: Metrics) -> bool:
        """Takes the metrics of a step, waiting for them; whether it was not to be taken."""
        loss, norm, stopped = jax.device_get((metrics.loss, metrics.gradient_norm, metrics.stopped))
        if stopped:
            return True
        self.pending.append((float(loss), float(norm)))
        self._steps += 1
        self._bar.update()
        if step % self._config.log_every == 0 or step == self._config.steps:
            self._log(step)
        return False

    def _begin(self):
        self._waited, self._steps, self._started = 0.0, 0, time.monotonic()

    def _log(self, step):
        seconds, count = time.monotonic() - self._started, self._steps
        loss, norm = np.mean(self.pending, axis=0)
        self.pending = []
        values = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": float(self._rate(step - 1)),
            "samples_per_second": count * self._config.data.batch_size / seconds,
            "seconds_per_step": seconds / count,
            "data_wait": self._waited / seconds,
        }
        if self._flops:
            rate = self._flops * count / seconds
            values["tflops_per_device"] = rate / 1e12
            if peak := peak_flops(self._stage.mesh.devices.flat[0]):
                values["share_of_peak"] = rate / peak
        statistics = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            values["memory_gib"] = statistics["peak_bytes_in_use"] / 2**30
        self._writer.write(step, values)
        self._bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        self.say(
            f"step {step}: loss {values['loss']:.4f}, gradient {values['gradient_norm']:.3g}, "
            f"{values['samples_per_second']:.3g} samples/s, "
            f"{100 * values['data_wait']:.0f} % of the time waiting for data"
        )
        self._begin()

    def validate(self, validation, state, frozen, step: int) -> float:
        """The validation loss after a step, written and said."""
        with self._aside():
            loss = validation.loss(state.result, frozen)
            self._writer.write(step, {"validation_loss": loss})
            self.say(f"step {step}: validation loss {loss:.5f}")
        return loss

    def show_videos(self, validation, state, frozen, step: int) -> None:
        """Sampled videos after a step, and how near they come."""
        target = self._workdir / "samples" / f"{step:07d}"
        with self._aside():
            values = validation.videos(state.result, frozen, target)
            self._writer.write(step, values)
            self.say(f"step {step}: " + ", ".join(f"{n} {x:.2f}" for n, x in values.items()))

    @contextlib.contextmanager
    def _aside(self):
        """What happens meanwhile is not the training's time."""
        start = time.monotonic()
        yield
        self._started += time.monotonic() - start

    def explain(self, step: int, metrics: Metrics) -> UserError:
        """Writes which records made a step's loss impossible; returns the error to raise."""
        losses, records, norm = jax.device_get(
            (metrics.losses, metrics.records, metrics.gradient_norm)
        )
        rows = [
            {"set": int(r[0]), "record": int(r[1]), "first_frame": int(r[2]), "loss": repr(loss)}
            for r, loss in zip(records, losses.tolist())
        ]
        path = self._workdir / f"stopped_at_{step:07d}.json"
        if self._first_process:
            values = {"step": step, "gradient_norm": repr(float(norm)), "rows": rows}
            path.write_text(json.dumps(values, indent=1) + "\n")
        mean = float(np.mean(losses))
        kind = "leapt to" if np.isfinite(mean) and np.isfinite(norm) else "is"
        return UserError(
            f"step {step}: the loss {kind} {mean:.4g} (gradient norm {float(norm):.4g}); the state"
            f" before it is saved, and {path} names the batch's records; where"
            " they are sound, another config.seed goes on with other noise"
        )

    def close(self) -> None:
        if self._tracing:
            self._end_trace()
        self._bar.close()
        self._writer.close()
