"""A gcloud with one queued resource, for tests: its workers are folders of this machine.

Everything is in the folder $FAKE_CLOUD: `calls` (every command line), `resource` (absent until it
is created), `workers/NAME` (home directories), `bucket` (all of gs://) and, written by tests,
`coming` (the states that `describe` goes through after a creation), `unreachable` (a node),
`refuse` (an exit code for creations), `busy` (so many deletions fail), `copies_nothing` (scp does,
and its exit code says nothing of it), `hang` (connections die), `logged_out` and
`no_pip` (a worker on which nothing can be installed).
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
RESOURCE = CLOUD / "resource"
WORKERS_PER_SLICE = 2


def main(arguments):
    with open(CLOUD / "calls", "a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if (CLOUD / "logged_out").exists():
        return error(1, "You do not currently have an active account selected.")
    words = [word for word in arguments if not word.startswith("--")]
    flags = [word[2:].partition("=") for word in arguments if word.startswith("--")]
    flags = {name: value for name, _, value in flags}
    if words[0] == "storage":
        return storage(words[1], words[2:])
    assert words[:2] == ["compute", "tpus"] and flags["zone"] == "us-west4-a"
    group, verb, *words = words[2:]
    if (group, verb) == ("tpu-vm", "list"):
        print("somebody-else\tREADY\t1\ndance-90\tREADY\t1" if flags["format"] else "")
        for node in resource()["nodes"]:
            print(f"{node}\t{resource()['node_state']}\t{WORKERS_PER_SLICE}")
        return 0
    assert group == "queued-resources"
    if verb == "create":
        return create(words[0], flags)
    if not RESOURCE.exists():
        return error(1, "NOT_FOUND: Resource was not found")
    return {"describe": describe, "delete": delete, "ssh": ssh, "scp": scp}[verb](words, flags)


def resource(**changes):
    value = json.loads(RESOURCE.read_text()) | changes
    if changes:
        RESOURCE.with_suffix(".new").write_text(json.dumps(value))
        RESOURCE.with_suffix(".new").replace(RESOURCE)
    return value


def error(code, message):
    print(f"ERROR: {message}", file=sys.stderr)
    return code


def create(name, flags):
    if (CLOUD / "refuse").exists():
        return error(int((CLOUD / "refuse").read_text()), "no quota")
    if RESOURCE.exists():
        return error(1, "ALREADY_EXISTS")
    nodes = [flags["node-id"]] if "node-id" in flags else None
    nodes = nodes or [f"{flags['node-prefix']}-{n}" for n in range(int(flags["node-count"]))]
    for node in nodes:
        for number in range(WORKERS_PER_SLICE):
            (CLOUD / "workers" / f"{node}-w-{number}").mkdir(parents=True)
    coming = (CLOUD / "coming").read_text().split() if (CLOUD / "coming").exists() else ["ACTIVE"]
    RESOURCE.write_text(json.dumps({"nodes": nodes, "node_state": "READY", "coming": coming}))
    return 0


def describe(words, flags):
    states = resource()["coming"]
    if len(states) > 1:
        resource(coming=states[1:])
    print(states[0])
    return 0


def delete(words, flags):
    assert "force" in flags
    busy = CLOUD / "busy"
    if busy.exists() and (times := int(busy.read_text())):
        busy.write_text(str(times - 1))
        return error(1, "UNAVAILABLE: try again")
    shutil.rmtree(CLOUD / "workers")
    RESOURCE.unlink()
    return 0


def targets(flags):
    nodes = resource()["nodes"]
    nodes = nodes if flags["node"] == "all" else [nodes[int(flags["node"])]]
    numbers = range(WORKERS_PER_SLICE) if flags["worker"] == "all" else [int(flags["worker"])]
    if (CLOUD / "unreachable").exists():  # which is all that gcloud says of it
        print("WARNING: Could not prepare all nodes, attempting the rest.", file=sys.stderr)
        nodes = [node for node in nodes if node != (CLOUD / "unreachable").read_text()]
    return [CLOUD / "workers" / f"{node}-w-{number}" for node in nodes for number in numbers]


def ssh(words, flags):
    while (CLOUD / "hang").exists():
        time.sleep(0.05)
    processes = []
    for home in reversed(targets(flags)):  # who answers first is anybody's guess
        environment = {name: os.environ[name] for name in ("PATH", "FAKE_CLOUD")}
        environment |= {"HOME": str(home), "FAKE_HOST": home.name}
        command = ["bash", "-c", flags["command"]]
        new = {"start_new_session": True, "cwd": home, "env": environment}
        processes.append(subprocess.Popen(command, **new))
    codes = [process.wait() for process in processes]
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGHUP)  # the connection ends
        except ProcessLookupError:
            pass
    return next((code for code in codes if code), 0)


def scp(words, flags):
    *files, target = words
    if (CLOUD / "copies_nothing").exists():
        print("ERROR: Could not prepare all 1 nodes", file=sys.stderr)
        return 0
    for home in targets(flags):
        for file in map(Path, files):
            if file.name == "secrets" and stat.S_IMODE(file.stat().st_mode) != 0o600:
                return error(1, "others can read secrets")
            shutil.copy(file, home / target.partition(":")[2])  # with its mode, as scp does
    return 0


def storage(verb, paths):
    paths = [str(CLOUD / "bucket" / p[5:]) if p.startswith("gs://") else p for p in paths]
    if verb == "cat":
        sys.stdout.write(Path(paths[0]).read_text())
        return 0
    source, target = map(Path, paths)
    sources = sorted(source.parent.glob("*")) if source.name == "*" else [source]
    for source in sources:
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
