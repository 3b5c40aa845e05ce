import functools
import json
import os
import time

import pytest

from animate_jax.errors import UnreadableError, UserError
from data_prep.clips import CutSettings, load_cut
from data_prep.layouts import Video
from data_prep.places import list_files, read_bytes, store
from data_prep.runners import Job, Running, cores, run_jobs


def words():
    return lambda task: {"result.json": task.encode(), "word": task.encode() * 2}


def jobs(tmp_path, *tasks):
    return [Job(task, str(tmp_path / task)) for task in tasks]


def test_jobs_write_what_they_return(tmp_path, capfd):
    run_jobs(words, jobs(tmp_path, "a", "b"), Running(workers=1), "words", "word")
    assert list_files(tmp_path) == {
        **{"a/result.json": 1, "a/word": 2},
        **{"b/result.json": 1, "b/word": 2},
    }
    assert "2/2" in capfd.readouterr().err
    run_jobs(None, [], Running(workers=1), "words", "word")  # nothing to prepare for


def test_the_result_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("data_prep.places.write_bytes", lambda path, content: written.append(path))
    store(tmp_path, {"result.json": b"1", "z.mp4": b"2", "a.mp4": b"3"})
    assert [path.rsplit("/", 1)[1] for path in written] == ["a.mp4", "z.mp4", "result.json"]


def test_a_bug_names_the_job(tmp_path):
    def prepare():
        return lambda task: {"a": {}[task]}

    with pytest.raises(RuntimeError, match=r"/film: KeyError: 'film'"):
        run_jobs(prepare, jobs(tmp_path, "film"), Running(workers=1), "words", "word")


@pytest.mark.parametrize("message", ["0 frames per second", "/videos/a film.mp4: try again"])
def test_bad_input_names_the_job_once(tmp_path, message):
    def work(task):
        raise UnreadableError(message)

    job = Job("task", str(tmp_path / "task"), "a film.mp4")
    with pytest.raises(UnreadableError, match=message) as raised:
        run_jobs(lambda: work, [job], Running(workers=1), "clips", "video")
    assert str(raised.value).count("a film.mp4: ") == 1


def test_processes_do_the_jobs_too(tmp_path):
    """Of missing videos, so that it is quick: each is a drop."""
    videos = [Job(Video(f"{i}.mp4", "/gone.mp4"), str(tmp_path / str(i))) for i in range(3)]
    prepare = functools.partial(load_cut, CutSettings())
    run_jobs(prepare, videos, Running(workers=2), "clips", "video")
    for i in range(3):
        (drop,) = json.loads(read_bytes(tmp_path / str(i) / "result.json"))["drops"]
        assert drop["detail"].startswith(f"{i}.mp4: there is no such video")


def test_a_worker_that_dies_is_one_clear_error(tmp_path):
    start = time.monotonic()
    with pytest.raises(UserError, match="a worker process died.*run the same command again"):
        run_jobs(
            functools.partial(os._exit, 3), jobs(tmp_path, "a", "b"), Running(workers=2), "", ""
        )
    assert time.monotonic() - start < 60


def test_impossible_ways_to_run():
    with pytest.raises(UserError, match="choose local or beam"):
        Running("spark")
    with pytest.raises(UserError, match="at least 1"):
        Running(workers=0)
    with pytest.raises(UserError, match="add it"):
        Running(beam_args=["--x"])


def test_cores_are_counted_on_every_system(monkeypatch):
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    assert cores() == os.cpu_count()
