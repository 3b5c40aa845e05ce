#!/usr/bin/env bash
# What launch_tpu.sh runs on every worker of a TPU, in the folder that it was copied to.
#
#   secrets       NAME=VALUE lines, for the trainer's environment
#   source, venv  the project and its Python; ready: they fit each other
#   train.log     all trainings on this worker; a copy goes to WORKDIR/logs
#   run/          of the last training: lock (held while it lives), id, pid, code, workdir, stopped
set -euo pipefail

answer() { printf 'worker %s %s\n' "$(hostname)" "$*"; }
# Runner and trainer hold the lock while they live, whatever ends them.
# Who asks shares it with others who ask, or they would take each other for a training.
training() { ! flock -n -s run/lock true; }
refuse_while_training() { ! training || { answer "is training; stop it first"; exit 4; }; }

setup() { # REPO REF
  local code
  refuse_while_training
  set +e # `if` and `||` would keep prepare from ending at its first error
  (set -e; prepare "$@") >setup.log 2>&1
  code=$?
  set -e
  [ "$code" = 0 ] || { tail -n 20 setup.log; answer "could not be set up"; exit "$code"; }
  answer "is set up"
}

prepare() {
  rm -f ready
  [ ! -f secrets ] || chmod 600 secrets
  rm -rf source.new
  if [ -n "$1" ]; then
    git clone "$1" source.new
    [ -z "$2" ] || git -C source.new checkout "$2" --
  else
    mkdir source.new
    tar -xzf source.tar.gz -C source.new
  fi
  rm -rf source
  mv source.new source
  if ! new_enough venv/bin/python; then
    rm -rf venv
    local python
    python=$(find_python)
    "$python" -m venv venv
  fi
  venv/bin/python -m pip install --constraint source/constraints.txt './source[train,tpu]'
  touch ready
}

refuse_unprepared() { [ -f ready ] || { answer "is not set up; run setup"; exit 4; }; }

new_enough() { "$1" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() { # prints one; where the image has none, uv brings it
  local python
  for python in python3.11 python3.12 python3.13 python3; do
    if new_enough "$python"; then echo "$python"; return; fi
  done
  export UV_INSTALL_DIR=$PWD/uv UV_NO_MODIFY_PATH=1 UV_PYTHON_PREFERENCE=only-managed
  [ -x uv/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh >&2
  uv/uv python install 3.11 >&2
  uv/uv python find 3.11
}

start() { # ID WORKDIR COMMAND...
  refuse_unprepared
  exec 9>>run/lock # inherited by all that follows
  if ! flock -w 2 9; then # longer than anybody who asks holds it
    # gcloud repeats a command whose connection broke: then this is the training meant.
    [ "$(cat run/id)" = "$1" ] || refuse_while_training
  else
    rm -f run/pid run/code run/stopped
    echo "$1" >run/id
    printf '%s\n' "$2" >run/workdir
    trap '' HUP # it outlives the connection
    setsid bash worker.sh run "${@:3}" </dev/null >run/runner.log 2>&1 &
  fi
  answer trains
}

run() { # COMMAND...
  local line trainer sender code=0
  if [ -f secrets ]; then
    while IFS= read -r line; do export "${line?}"; done <secrets
  fi
  export PATH="$PWD/venv/bin:$PATH"
  trap : TERM # of a machine that shuts down: the trainer gets it too, and its code is wanted
  printf '=== %s, started %s\n' "$(hostname)" "$(date -u '+%F %T')" >>train.log
  (cd source && exec "$@") >>train.log 2>&1 &
  trainer=$!
  echo "$trainer" >run/pid
  (while sleep 60; do send_log; done) 9>&- &
  sender=$!
  wait "$trainer" || code=$?
  while kill -0 "$trainer" 2>/dev/null; do code=0; wait "$trainer" || code=$?; done
  kill "$sender" || :
  echo "$code" >run/code.new
  mv run/code.new run/code
  send_log 9>&-
}

send_log() {
  timeout 120 gcloud storage cp --quiet train.log "$(cat run/workdir)/logs/$(hostname).log" || :
}

state() {
  if training; then echo "running $(cat run/workdir)"
  elif [ -f run/stopped ]; then echo "stopped $(cat run/code 2>/dev/null)"
  elif [ -f run/code ]; then echo "ended $(cat run/code)"
  elif [ -f run/id ]; then echo lost
  else echo idle; fi
}

stop() { # SECONDS BY-HAND KILL; the last two may be empty
  local end=$((SECONDS + $1))
  if training; then
    [ -z "$2" ] || touch run/stopped
    while [ ! -f run/pid ] && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
    kill -TERM "$(cat run/pid)" || :
    while training && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
    if training && [ -n "$3" ]; then
      kill -KILL "$(cat run/pid)" || :
      end=$((SECONDS + 10))
      while training && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
    fi
    ! training || { answer "has not ended after $1 s"; exit 5; }
  fi
  answer "$(state)"
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")"
  mkdir -p run
  case $1 in
    setup) setup "${@:2}" ;;
    idle) refuse_unprepared; refuse_while_training; answer idle ;;
    start) start "${@:2}" ;;
    run) run "${@:2}" ;;
    report) answer "$(state)" ;;
    stop) stop "${@:2}" ;;
    send-log) send_log; answer "log sent" ;;
  esac
}

main "$@"; exit # on one line: the file may be replaced while this runs
