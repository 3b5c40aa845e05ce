"""Runs independent jobs: in this process, in a pool of processes, or on Apache Beam.

Each worker prepares itself once (`prepare()` returns the function that does a job) and writes its
results where they belong, so that a job interrupted leaves nothing and a job done stays done. What
a job writes does not depend on who does it.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from animate_jax.errors import UserError
from data_prep.places import store

RUNNERS = ("local", "beam")

Work = Callable[[Any], dict[str, bytes]]


@dataclass(frozen=True)
class Job:
    """A task, which `prepare()(task)` turns into files, the place of these files, and the name that
    errors give the task."""

    task: Any
    place: str
    name: str = ""


@dataclass(frozen=True)
class Running:
    """How jobs run: `workers` processes here (None: one for each core), or a Beam pipeline.

    beam_args: options of the pipeline, as on the command line of any Beam program.
    """

    runner: str = "local"
    workers: int | None = None
    beam_args: Sequence[str] = ()

    def __post_init__(self):
        if self.runner not in RUNNERS:
            raise UserError(f"there is no runner {self.runner!r}; choose {' or '.join(RUNNERS)}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers} is not possible; give at least 1")
        if self.beam_args and self.runner != "beam":
            raise UserError("--beam-args are for --runner beam; add it")


def run_jobs(
    prepare: Callable[[], Work], jobs: Sequence[Job], running: Running, title: str, unit: str
) -> None:
    """Does all jobs in any order; `prepare` must be picklable.

    Raises UserError when a worker dies, and what a job raises, with the job's name or place.
    """
    if not jobs:
        return
    if running.runner == "beam":
        try:
            from data_prep.beam_runner import run_pipeline
        except ImportError as error:
            raise UserError(
                f"--runner beam needs Apache Beam ({error}); run: pip install 'animate-jax[beam]'"
            ) from error
        print(f"{title}: {len(jobs)} {unit}s on Apache Beam")
        return run_pipeline(prepare, jobs, running.beam_args)
    workers = min(running.workers or cores(), len(jobs))
    finished = _here(prepare, jobs) if workers == 1 else _pool(prepare, jobs, workers)
    for _ in tqdm(finished, desc=title, total=len(jobs), unit=unit):
        pass


def cores() -> int:
    """Those that this process may use, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def do_job(work: Work, job: Job) -> None:
    """Does one job and writes its files."""
    try:
        files = work(job.task)
    except UserError as error:
        # Of thousands of videos, which one?
        if job.name in str(error):
            raise
        raise type(error)(f"{job.name}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"{job.place}: {type(error).__name__}: {error}") from error
    store(job.place, files)


def _here(prepare, jobs) -> Iterable[None]:
    work = prepare()
    for job in jobs:
        yield do_job(work, job)


def _pool(prepare, jobs, workers) -> Iterable[None]:
    # Spawned, because forking a process whose libraries run threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(prepare,))
    try:
        futures = [pool.submit(_do_in_worker, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process died, perhaps for want of memory; run the same command again to"
                " continue, with fewer --workers"
            ) from error
        raise


_work: Work | None = None  # of this worker process


def _start_worker(prepare):
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    _work = prepare()


def _do_in_worker(job):
    do_job(_work, job)
