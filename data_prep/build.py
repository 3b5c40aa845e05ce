"""The order of preparation: videos -> clips -> poses -> clip directory -> records and report.

Each job's results lie in a folder of their own in DIR/work (or another place, which may be
remote): work/clips/VIDEO/ and work/poses/VIDEO/CLIP/. A run that was interrupted does what has no
result yet; then the clip directory is put together from all results, in the order of the videos.
"""

import functools
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from animate_jax.errors import UserError
from animate_jax.files import check_place, replacing
from data_prep.clip_directory import METADATA, write_json_lines
from data_prep.clips import CutSettings, load_cut
from data_prep.layouts import Video
from data_prep.places import RESULT, delete, is_remote, join, list_files, read_bytes, write_bytes
from data_prep.poses import Clip, PoseSettings, load_pose
from data_prep.runners import Job, Running, run_jobs

LISTED_TWICE = "listed twice"
DROPS = "drops.jsonl"
NOTES = "notes.jsonl"
WORK = {"settings.json", "videos.json", "clips", "poses"}
OURS = {"clips", "keypoints", METADATA, DROPS, NOTES, "records", "report.html", "work"}


def open_build(out: str | os.PathLike, work: str | None = None, overwrite: bool = False) -> str:
    """Makes the build directory `out` where it is missing; returns the place of working files.

    An earlier build is continued, or removed with `overwrite`. What a killed one was writing is
    removed; other hidden files are left alone. Raises UserError when `out` holds anything else.
    """
    out = Path(out)
    check_place(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another name")
    work = work or str(out / "work")
    if not is_remote(work):
        check_place(work)
        if Path(work).exists() and not Path(work).is_dir():
            raise UserError(f"{work}: is a file; choose another place for --work")
    present = {entry.name for entry in out.iterdir()} if out.exists() else set()
    entries, leftovers = _known(present, OURS)
    if not entries <= OURS:
        raise UserError(f"{out}: holds {min(entries - OURS)}; choose a new directory")
    if (entries | leftovers) - {"work"} and read_bytes(join(work, "settings.json")) is None:
        raise UserError(f"{out}: holds clips, but no work of this command; choose a new directory")
    for name in leftovers:
        delete(out / name)
    if overwrite:
        held, unfinished = _known({name.split("/")[0] for name in list_files(work)}, WORK)
        if held and not {"settings.json"} <= held <= WORK:
            strange = min(held - WORK, default="no settings.json")
            raise UserError(f"{work}: holds {strange}; --overwrite removes only what build left")
        for name in entries - {"work"}:
            delete(out / name)
        # The settings last: without them the rest would not be known as ours.
        for name in sorted(held | unfinished, key=lambda name: name == "settings.json"):
            delete(join(work, name))
    out.mkdir(parents=True, exist_ok=True)
    return work


def _known(names, ours) -> tuple[set[str], set[str]]:
    """Of the names in a directory those that are not hidden, and those of files of `ours` that a
    process which is no more was writing."""
    leftovers = set()
    for name in names:
        match = re.fullmatch(r"\.(.+)\.(\d+)\.(?:part|old)", name)
        if match and match[1] in ours and not _running(match[2]):
            leftovers.add(name)
    return {name for name in names if not name.startswith(".")}, leftovers


def _running(process):
    """Whether another process has this number, where the system tells; ours may have been used."""
    return int(process) != os.getpid() and Path("/proc", process).exists()


def make_clips(
    videos: list[Video], work: str, settings: CutSettings, running: Running, licence: str
) -> None:
    """The step `clips`: every video that has no result in `work` yet is cut into clips."""
    _keep_settings(work, "clips", settings)
    listing = {"licence": licence, "videos": [asdict(video) for video in videos]}
    write_bytes(join(work, "videos.json"), (json.dumps(listing, indent=1) + "\n").encode())
    done = _done(join(work, "clips"))
    jobs = []
    for video in _listed(work)[0]:
        place = join(work, "clips", video.key)
        if video.key in done:
            if _read(join(place, RESULT))["size"] == video.size:
                continue
            # The video was replaced. What follows from its clips goes first: once they are cut
            # anew, it would pass for theirs.
            delete(join(work, "poses", video.key))
            delete(place)
        jobs.append(Job(video, place, video.source))
    run_jobs(functools.partial(load_cut, settings), jobs, running, "clips", "video")


def make_poses(work: str, settings: PoseSettings, running: Running) -> None:
    """The step `poses`: keypoints for every clip in `work` that has no result yet.

    Raises UserError where the step `clips` was not done, or not to its end.
    """
    videos, _ = _listed(work)
    left = {video.key for video in videos} - _done(join(work, "clips"))
    if left:
        raise UserError(
            f"{len(left)} of {len(videos)} videos are not cut into clips yet; run the step clips"
            " again to continue it"
        )
    _keep_settings(work, "poses", settings)
    done = _done(join(work, "poses"))
    jobs = []
    for video in videos:
        for clip in _read(join(work, "clips", video.key, RESULT))["clips"]:
            name = clip["name"]
            if f"{video.key}/{name}" not in done:
                path = join(work, "clips", video.key, f"{name}.mp4")
                task = Clip(name, path, clip["fps"], clip["width"], clip["height"])
                jobs.append(Job(task, join(work, "poses", video.key, name), name))
    run_jobs(functools.partial(load_pose, settings), jobs, running, "poses", "clip")


def assemble(out: str | os.PathLike, work: str, *, poses: bool) -> tuple[int, Counter, int]:
    """Makes `out` the clip directory of what is in `work`, and writes its drops.jsonl and
    notes.jsonl.

    Returns the number of clips, of drops by reason, and of videos with a note. Without `poses` no
    clip has keypoints and none is dropped for its poses. Raises UserError when no clip is left.
    """
    out = Path(out)
    videos, twice = _listed(work)
    licence = _read(join(work, "videos.json"))["licence"]
    lines, files, drops, notes = [], {}, [], []
    for video in videos:
        cut = _read(join(work, "clips", video.key, RESULT))
        drops += [{"source": video.source, "clip": None, **drop} for drop in cut["drops"]]
        told = cut.get("notes", [])  # older results have none
        notes += [{"source": video.source, "note": note} for note in told]
        for clip in cut["clips"]:
            name = clip["name"]
            line = {"clip": f"clips/{name}.mp4"}
            if poses:
                found = join(work, "poses", video.key, name)
                seen = _read(join(found, RESULT))
                if drop := seen.pop("drop"):
                    scene = [clip["start"], clip["end"]]
                    drops.append({"source": video.source, "clip": name, "scene": scene, **drop})
                    continue
                line["keypoints"] = f"keypoints/{name}.npz"
                files[line["keypoints"]] = join(found, "keypoints.npz")
                clip |= seen
            files[line["clip"]] = join(work, "clips", video.key, f"{name}.mp4")
            line |= {key: value for key, value in clip.items() if key != "name"}
            line |= {"source": video.source, "licence": licence}
            lines.append(line | ({"split": video.split} if video.split else {}))
    drops += [
        {"source": source, "clip": None, "scene": None, "reason": LISTED_TWICE, "detail": ""}
        for source in twice
    ]
    for folder in ("clips", "keypoints"):
        for path in (out / folder).glob("*"):
            if f"{folder}/{path.name}" not in files:
                path.unlink()
    for name, source in files.items():
        _bring(source, out / name)
    for name, objects in ((METADATA, lines), (DROPS, drops), (NOTES, notes)):
        with replacing(out / name) as temporary:
            write_json_lines(temporary, objects)
    counts = Counter(drop["reason"] for drop in drops)
    if not lines:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        raise UserError(f"no usable clip is left; dropped: {reasons}; {out / DROPS} says why")
    return len(lines), counts, len({note["source"] for note in notes})


def _listed(work) -> tuple[list[Video], list[str]]:
    """The videos of the step `clips`, and the sources that were listed more than once."""
    listing = _read(join(work, "videos.json"))
    videos, twice = {}, []
    for video in (Video(**line) for line in listing["videos"]):
        if video.key in videos:
            twice.append(video.source)
        videos.setdefault(video.key, video)
    return list(videos.values()), twice


def _done(place) -> set[str]:
    """Folders below `place` that hold a finished job's results."""
    return {name.removesuffix(f"/{RESULT}") for name in list_files(place) if name.endswith(RESULT)}


def _keep_settings(work, step, settings):
    """Writes down what a step works with; raises UserError when it began with something else."""
    path = join(work, "settings.json")
    kept = json.loads(read_bytes(path) or b"{}")
    before, now = kept.get(step), asdict(settings)
    if before is None:
        write_bytes(path, (json.dumps(kept | {step: now}, indent=1) + "\n").encode())
        return
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        names = ", ".join(
            f"--{name.replace('_', '-')} was {before.get(name)} and is {now[name]}"
            for name in changed
        )
        raise UserError(
            f"{work}: holds {step} that were made with other settings ({names}); give the same"
            " ones, another --out, or --overwrite"
        )


def _read(path):
    content = read_bytes(path)
    if content is None:
        raise UserError(f"{path}: is missing; run the step clips, or build, into this directory")
    return json.loads(content)


def _bring(source, target):
    """Gives a working file its name in the clip directory, without a copy where possible."""
    target.parent.mkdir(exist_ok=True)
    if is_remote(source):
        write_bytes(target, read_bytes(source))
        return
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
