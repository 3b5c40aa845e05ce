#!/usr/bin/env bash
# Training on Cloud TPUs, from this machine. animate_jax/tpu/worker.sh is the other half.
# shellcheck disable=SC2329  # actions are called by their names
set -euo pipefail

usage() {
  cat <<'END'
launch_tpu.sh ACTION [--setting VALUE]... [--config.key=value]...

  plan      what the config needs on this TPU; runs on this machine
  create    ask for the TPU (a queued resource); it costs money from when it is there
  setup     wait for it; Python, this project and secrets onto every worker
  train     start training on every worker; goes on if the workdir has a checkpoint
  watch     set up, train, and recreate what is preempted, until training ends
            (--then-delete deletes the TPU then)
  status    the resource, every worker, the last metrics
  logs      follow worker 0; --to DIR gathers the logs of all workers, past ones too
  ssh       a shell on worker 0 (--node N --worker M)
  stop      let training save and end (--kill ends what has not after a while)
  resume    train as last time
  delete    give the TPU back; the workdir stays
  dry-run ACTION ...   print the commands, run nothing

Settings, also as LAUNCH_ZONE=... or as lines zone=... in a file given with --settings:
  --name --zone --project --accelerator-type (such as v5litepod-16) --slices (1) --runtime-version
  --provisioning spot | on-demand | reserved, or just --spot
  --workdir gs://BUCKET/RUN  --config configs/stage1.py
  --repo URL --ref REF      code; without a URL, the commit REF (HEAD) of this checkout
  --secret NAME             pass this environment variable on, e.g. HF_TOKEN
  --compiled gs://DIR       where compiled programs are kept, for restarts to find (WORKDIR/compiled)
  --libtpu-args ARGS        XLA flags in place of the usual ones
  --create-flag, --connect-flag FLAG   for gcloud's create, and for its ssh and scp
What is not given is as it was last time for this --name; each --config.key too, for resume and watch.
END
}

# Settings ---------------------------------------------------------------------------------------

SETTINGS=" name zone project accelerator_type slices runtime_version provisioning workdir config \
repo ref compiled libtpu_args "
LISTS=" override secret create_flag connect_flag " # one value a line
OPTIONS=" settings to node worker "
name='' zone='' project='' accelerator_type='' slices=1 runtime_version='' provisioning=on-demand
workdir='' config='' repo='' ref='' compiled='' override='' secret='' create_flag='' connect_flag=''
settings='' to='' node=0 worker=0 kill='' then_delete='' dry=''
commit='' # that `watch` sends, in place of what ref is by now
# The one place of XLA flags: `plan` compiles with them and `train` runs with them. They let
# collectives overlap with computation.
USUAL_LIBTPU_ARGS="--xla_tpu_enable_async_collective_fusion=true\
 --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true\
 --xla_tpu_enable_async_collective_fusion_multiple_steps=true\
 --xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true\
 --xla_tpu_enable_data_parallel_all_reduce_opt=true\
 --xla_tpu_data_parallel_opt_different_sized_ops=true"
libtpu_args=$USUAL_LIBTPU_ARGS

STATE=${LAUNCH_STATE:-$HOME/.local/state/animate-jax/tpu} # what was given last time, by name
POLL=${LAUNCH_POLL_SECONDS:-60}
STOP_SECONDS=${LAUNCH_STOP_SECONDS:-900}       # that saving may take
ASK_SECONDS=${LAUNCH_ASK_SECONDS:-300}         # after which a worker that was asked is not waited for
SETUP_SECONDS=${LAUNCH_SETUP_SECONDS:-3600}    # that setting up or sending files may take
GRACE=${LAUNCH_GRACE_POLLS:-5}                 # how often trouble is seen before it is believed
MAX_RESTARTS=${LAUNCH_MAX_RESTARTS:-10}        # of watch, within
RESTART_WINDOW=${LAUNCH_RESTART_WINDOW:-86400} # seconds
HANG_SECONDS=${LAUNCH_HANG_SECONDS:-10800}     # without a step; compiling and validation count
REMOTE=animate-tpu                             # folder in the home directory of every worker
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '%s\n' "$*" >&2; }
fail() { say "launch_tpu.sh: ${*:2}"; exit "$1"; }
bad() { fail 2 "$@"; }

assign() { # KEY VALUE
  [[ $2 != *$'\n'* ]] || bad "the value of $1 has more than one line"
  if [[ $LISTS == *" $1 "* ]]; then
    # A list replaces that of an earlier source, also by none: --secret=
    if [ -z "$2" ]; then given+=" $1 "; printf -v "$1" ''
    elif [[ $given == *" $1 "* ]]; then printf -v "$1" '%s%s\n' "${!1}" "$2"
    else given+=" $1 "; printf -v "$1" '%s\n' "$2"; fi
  elif [[ $SETTINGS$OPTIONS == *" $1 "* ]]; then printf -v "$1" '%s' "$2"
  else bad "no setting is called '$1'"; fi
}

read_flags() {
  local key
  given=' '
  while [ $# -gt 0 ]; do
    key=${1%%=*} key=${key#--} key=${key//-/_}
    case $1 in
      --config.*=*) assign override "$1" ;;
      --config.*) bad "write $1=VALUE" ;;
      --spot | --on-demand | --reserved) assign provisioning "${1#--}" ;;
      --kill) kill=yes ;;
      --then-delete) then_delete=yes ;;
      --*=*) assign "$key" "${1#*=}" ;;
      --*) [ $# -gt 1 ] || bad "$1 needs a value"; assign "$key" "$2"; shift ;;
      *) bad "what is '$1'? ($0 help)" ;;
    esac
    shift
  done
}

read_file() { # lines KEY=VALUE, as data: nothing in them is executed
  local line
  [ -r "$1" ] || bad "cannot read $1"
  given=' '
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line%$'\r'} # of an editor on Windows
    case $line in
      '' | '#'*) ;;
      *=*) assign "${line%%=*}" "${line#*=}" ;;
      *) bad "$1: '$line' is not KEY=VALUE" ;;
    esac
  done <"$1"
}

read_environment() {
  local key variable
  given=' '
  for variable in "${!LAUNCH_@}"; do
    key=$(printf %s "${variable#LAUNCH_}" | tr '[:upper:]' '[:lower:]')
    if [[ $key != override && $SETTINGS$LISTS == *" $key "* ]]; then assign "$key" "${!variable}"; fi
  done
}

read_settings() { # ACTION FLAGS...; later sources win: last time, file, environment, flags
  local action=$1 pass last=''
  read_flags "${@:2}" # one of them names the file
  for pass in name all; do
    if [ "$pass" = all ] && [ -f "$STATE/$name" ]; then read_file "$STATE/$name"; fi
    # A new training is what its command line says; resume and watch repeat the last one.
    case $action in
      train | plan) override='' ;;
      *) [ "$pass" = name ] || last=$override ;;
    esac
    [ -z "$settings" ] || read_file "$settings"
    read_environment
    read_flags "${@:2}"
    if [ "$pass" = name ] && [ "$action$name" != plan ]; then
      matches "$name" '^[a-z]([a-z0-9-]*[a-z0-9])?$' "--name '$name' is not a word of a-z, 0-9, -"
    fi
  done
  keep_overrides "$last"
}

keep_overrides() { # OVERRIDES of last time, but of keys that are given anew
  local line keys=' ' kept=''
  while IFS= read -r line; do keys+="${line%%=*} "; done < <(printf %s "$override")
  while IFS= read -r line; do
    [[ $keys == *" ${line%%=*} "* ]] || kept+=$line$'\n'
  done < <(printf %s "$1")
  override=$kept$override
}

store_settings() {
  local key line
  [ -z "$dry" ] || return 0
  mkdir -p "$STATE"
  for key in $SETTINGS; do
    # The usual flags are those of this script, not of the one that was here last time.
    [ "$key=${!key}" = "libtpu_args=$USUAL_LIBTPU_ARGS" ] || printf '%s=%s\n' "$key" "${!key}"
  done >"$STATE/$name.new"
  for key in $LISTS; do
    while IFS= read -r line; do printf '%s=%s\n' "$key" "$line"; done < <(printf %s "${!key}")
  done >>"$STATE/$name.new"
  mv "$STATE/$name.new" "$STATE/$name"
}

matches() { [[ $1 =~ $2 ]] || bad "${*:3}"; }

check_settings() { # ACTION
  local variable
  matches "$slices" '^[1-9][0-9]*$' "--slices '$slices' is not a positive number"
  matches "$provisioning" '^(spot|on-demand|reserved)$' "--provisioning '$provisioning' is unknown"
  [ "$1" = plan ] || matches "$zone" '^[a-z0-9-]+$' "--zone is needed, such as us-west4-a"
  case $1 in create | watch | plan)
    matches "$accelerator_type" '^v[0-9]+[a-z]*-[0-9]+$' \
      "--accelerator-type '$accelerator_type' is not one such as v5litepod-16" ;;
  esac
  case $1 in train | resume | watch | plan) [ -n "$config" ] || bad "--config is needed" ;; esac
  case $1 in train | resume | watch)
    matches "$workdir" '^gs://[^/]' "--workdir gs://BUCKET/RUN is needed, for all workers" ;;
  esac
  [ -z "$to" ] || [ -n "$workdir" ] || bad "--workdir is needed: the logs are gathered there"
  case $1$runtime_version in create | watch) default_runtime_version >/dev/null ;; esac
  [[ $repo != http*://*@* ]] || bad "--repo has a password; without --repo this checkout is sent"
  [[ $repo != -* && $ref != -* ]] || bad "--repo and --ref cannot start with -"
  for variable in $secret; do
    matches "$variable" '^[A-Za-z_][A-Za-z0-9_]*$' "--secret takes the name of a variable"
    case $1 in setup | watch)
      [ -n "${!variable-}" ] || bad "--secret $variable: there is no such environment variable"
      [[ ${!variable} != *$'\n'* ]] || bad "--secret $variable has more than one line" ;;
    esac
  done
}

default_runtime_version() {
  case $accelerator_type in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5e-*) bad "Google's name for $accelerator_type is v5litepod-${accelerator_type#*-}" ;;
    *) bad "--runtime-version is needed for $accelerator_type" ;;
  esac
}

# Commands ---------------------------------------------------------------------------------------

workers='' # their number, when it is known
mute='' # set where the same question is asked again and again
show() { [ -n "$mute" ] || printf '+%s\n' "$(printf ' %q' "$@")" >&3; }
run() { show "$@"; [ -n "$dry" ] || "$@"; }

with_list() { # LIST COMMAND...: the command with a list's values behind it
  local line command=("${@:2}")
  while IFS= read -r line; do command+=("$line"); done < <(printf %s "$1")
  "${command[@]}"
}

tpus() { run gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}; }
connect() { with_list "$connect_flag" tpus queued-resources "$@"; } # ssh or scp

# A connection that died would be waited for for hours: gcloud's own limits are those of TCP.
limited() { # SECONDS COMMAND...
  local end=$((SECONDS + $1)) it
  "${@:2}" </dev/null &
  it=$!
  while kill -0 "$it" 2>/dev/null; do
    [ "$SECONDS" -lt "$end" ] || {
      say "no answer within $1 s: given up"
      pkill -P "$it" || :
      kill "$it" 2>/dev/null || :
      return 1
    }
    sleep 0.1
  done
  wait "$it"
}

on_worker() { printf 'bash %s/worker.sh' "$REMOTE"; printf ' %q' "$@"; }
if_set_up() {
  printf 'test ! -f %s/worker.sh && echo worker new idle || ' "$REMOTE"
  on_worker "$@"
}
has_arrived() {
  printf 'grep -sqxF %s %s/sent || ' "$1" "$REMOTE"
  printf '{ echo "worker got no files; try: ssh-add ~/.ssh/google_compute_engine"; exit 1; };'
}
needs_setup() {
  printf 'test -f %s/worker.sh || { echo "worker not set up; run setup"; exit 4; }; ' "$REMOTE"
  on_worker "$@"
}

# Every worker answers with one line, the quickest first. They are counted, because gcloud skips a
# slice that it cannot reach with no more than a warning, and put in order.
everywhere() { # COMMAND for the shell of every worker, SECONDS that it may take
  local answers status=0
  [ -n "$workers" ] || find_nodes || return
  limited "${2:-$ASK_SECONDS}" connect ssh "$name" --node=all --worker=all "--command=$1" \
    >"$temporary/answers" || status=$?
  [ -z "$dry" ] || return 0
  answers=$(<"$temporary/answers")
  [ "$status" = 0 ] || { say "$answers"; return "$status"; }
  [ "$(printf '%s\n' "$answers" | grep -c '^worker ')" = "$workers" ] || {
    say "$answers"
    say "launch_tpu.sh: not all of the $workers workers of $name answered"
    return 1
  }
  printf '%s\n' "$answers" | sort -V
}

find_resource() { # sets $resource: gcloud's state, or MISSING
  local status=0
  resource=$(tpus queued-resources describe "$name" '--format=value(state.state)' \
    2>"$temporary/errors") || status=$?
  [ "$status" = 0 ] || {
    resource=MISSING
    grep -q NOT_FOUND "$temporary/errors" || { cat "$temporary/errors" >&2; return "$status"; }
  }
}

find_nodes() { # sets $nodes: "NAME STATE" of every slice, and $workers, their number
  local listed found state count number=0
  nodes='' workers=0
  listed=$(tpus tpu-vm list \
    '--format=value(name.basename(),state,networkEndpoints.len())') || return
  while read -r found state count; do
    # Somebody else's may be called alike.
    if [ "$slices" = 1 ]; then [ "$found" = "$name" ] || continue
    elif ! [[ $found =~ ^"$name"-([0-9]+)$ ]]; then continue
    else [ "${BASH_REMATCH[1]}" -lt "$slices" ] || continue; fi
    nodes+="$found $state"$'\n' workers=$((workers + count)) number=$((number + 1))
  done <<<"$listed"
  [ -n "$dry" ] || [ "$number" = "$slices" ] ||
    { say "launch_tpu.sh: $number of the $slices slices of $name are there"; return 1; }
}

wait_active() {
  local before='' mute=''
  while :; do
    find_resource
    [ -z "$dry" ] || return 0
    [ "$resource" = "$before" ] || say "$name is $resource"
    before=$resource mute=yes
    case $resource in
      ACTIVE) return ;;
      MISSING | FAILED | SUSPEND*) fail 1 "$name is $resource; delete and create it" ;;
    esac
    sleep "$POLL"
  done
}

# Actions ----------------------------------------------------------------------------------------

create() {
  local version=$runtime_version
  [ -n "$version" ] || version=$(default_runtime_version)
  set -- "$name" "--accelerator-type=$accelerator_type" "--runtime-version=$version"
  if [ "$slices" = 1 ]; then set -- "$@" "--node-id=$name"
  else set -- "$@" "--node-count=$slices" "--node-prefix=$name"; fi
  [ "$provisioning" = on-demand ] || set -- "$@" "--$provisioning"
  with_list "$create_flag" tpus queued-resources create "$@"
}

setup() {
  local variable sent
  wait_active
  set -- "$HERE/animate_jax/tpu/worker.sh"
  if [ -n "$secret" ]; then
    say "the values of ${secret//$'\n'/ }go to the workers in a file that only you can read"
    set -- "$@" "$temporary/secrets"
    [ -n "$dry" ] || for variable in $secret; do
      (umask 077; printf '%s=%s\n' "$variable" "${!variable}" >>"$temporary/secrets")
    done
  fi
  if [ -z "$repo" ]; then
    [ -z "$(git -C "$HERE" status --porcelain)" ] || say "what is not committed is not sent"
    set -- "$@" "$temporary/source.tar.gz"
    run git -C "$HERE" archive --format=tar.gz -o "$temporary/source.tar.gz" "${commit:-${ref:-HEAD}}"
  fi
  everywhere "mkdir -p -m 700 $REMOTE && rm -f $REMOTE/secrets && echo worker ready" >/dev/null
  # gcloud's scp ends well where it copied nothing, as with an agent that lacks its key.
  sent=$(date +%s).$$
  [ -n "$dry" ] || printf '%s\n' "$sent" >"$temporary/sent"
  set -- "$@" "$temporary/sent"
  limited "$SETUP_SECONDS" connect scp "$@" "$name:$REMOTE/" --node=all --worker=all
  rm -f "$temporary/secrets"
  everywhere "$(has_arrived "$sent") $(on_worker setup "$repo" "$ref")" "$SETUP_SECONDS"
}

train() {
  local start
  start=$(with_list "$override" on_worker start "$(date +%s).$$" "$workdir" \
    env "LIBTPU_INIT_ARGS=$libtpu_args" animate-jax train --distributed \
    --config "$config" --workdir "$workdir" "--compiled=${compiled:-$workdir/compiled}")
  everywhere "$(needs_setup idle)" >/dev/null # before any of them starts
  everywhere "$start"
}

resume() { train; }

plan() {
  with_list "$override" run env "LIBTPU_INIT_ARGS=$libtpu_args" animate-jax plan \
    --config "$config" --topology "$accelerator_type" --slices "$slices" \
    ${compiled:+"--serialize=$compiled"}
}

last_metrics() { run gcloud storage cat --range=-4096 "$workdir/metrics.jsonl" 2>/dev/null | tail -n 1; }

status() {
  local metrics code=0
  find_resource
  printf '%s is %s\n' "$name" "$resource"
  case $dry$resource in
    yes | ACTIVE) everywhere "$(if_set_up report)" || code=$?; printf '%s' "$nodes" ;;
    MISSING) code=1 ;;
  esac
  if [ -n "$workdir" ]; then
    metrics=$(last_metrics) || metrics='none yet'
    printf 'metrics: %s\n' "$metrics"
  fi
  return "$code"
}

logs() {
  if [ -z "$to" ]; then
    connect ssh "$name" --node=0 --worker=0 "--command=tail -n 200 -F $REMOTE/train.log"
  else
    everywhere "$(needs_setup send-log)" || say "the logs in the workdir may be a minute old"
    run mkdir -p "$to"
    run gcloud storage cp "$workdir/logs/*" "$to"
  fi
}

ssh() { connect ssh "$name" "--node=$node" "--worker=$worker"; }

stop() {
  everywhere "$(if_set_up stop "$STOP_SECONDS" by-hand "$kill")" $((STOP_SECONDS + ASK_SECONDS))
}

delete() { tpus queued-resources delete "$name" --force "$@"; }

# Watching ---------------------------------------------------------------------------------------

observe() { # prints what is the case, in one word, for a failure with its exit code
  local answers
  find_resource || { echo unknown; return; }
  case $resource in
    ACTIVE) ;;
    MISSING) echo missing; return ;;
    SUSPENDED | FAILED) echo preempted; return ;;
    *) echo waiting; return ;;
  esac
  find_nodes || { echo unknown; return; }
  case $nodes in *PREEMPTED* | *TERMINATED*) echo preempted; return ;; esac
  if grep -qv ' READY$' <<<"${nodes%$'\n'}"; then echo waiting; return; fi
  answers=$(everywhere "$(if_set_up report)") || { echo unknown; return; }
  judge <<<"$answers"
}

judge() { # what every worker reports
  local idle=yes running='' stopped='' lost='' missed='' other='' workers=0 worst=0
  local word state code
  while read -r word _ state code; do
    [ "$word" = worker ] || continue
    [ "$state" = idle ] || idle=''
    workers=$((workers + 1))
    case $state in
      running) # in which workdir
        running=yes
        [ "$code" = "$workdir" ] || other=$code ;;
      stopped) stopped=yes ;;
      ended) # told to end, but not by hand: its machine goes or went
        case $code in
          143) lost=yes ;;
          75 | 134) missed=$code ;; # without another one, by our own word or JAX's
          *) if [ "$code" -gt "$worst" ]; then worst=$code; fi ;;
        esac ;;
      *) lost=yes ;; # nothing was started, or its machine restarted
    esac
  done
  # Who fails leaves the others alone; where all were left alone, starting again helps.
  if [ -n "$missed" ] && [ "$worst" = 0 ]; then
    if [ "$workers" -gt 1 ]; then lost=yes; else worst=$missed; fi
  fi
  if [ -n "$idle" ]; then echo idle
  elif [ -n "$other" ]; then echo "elsewhere $other"
  elif [ -n "$running" ] && [ "$lost$worst" = 0 ]; then echo running
  elif [ -n "$running" ]; then echo partial
  elif [ -n "$stopped" ]; then echo stopped
  elif [ -n "$lost" ]; then echo interrupted
  elif [ "$worst" = 0 ]; then echo finished
  else echo "failed $worst"; fi
}

last_step() { # that the workdir's log tells; 0 for none
  local line
  line=$(limited "$ASK_SECONDS" last_metrics) || line=''
  if [[ $line =~ \"step\":\ *([0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; else echo 0; fi
}

REFUSED=64 # the exit code of a recovery that got no TPU

recover() { # WHAT was observed
  case $1 in
    preempted) delete --quiet; create || exit "$REFUSED" ;;
    missing) create || exit "$REFUSED" ;; # an earlier attempt got no further than deleting
    partial | interrupted | crashed | hung) everywhere "$(if_set_up stop 60 '' kill)" ;;
  esac
  (wait_active) || exit "$REFUSED"
  setup
  train
}

count_restart() { # ends the watch when there are too many
  local now moment recent=()
  now=$(date +%s)
  for moment in ${restarts[@]+"${restarts[@]}"}; do
    if [ $((now - moment)) -lt "$RESTART_WINDOW" ]; then recent+=("$moment"); fi
  done
  [ ${#recent[@]} -lt "$MAX_RESTARTS" ] ||
    end_watch 1 "started $MAX_RESTARTS times within $RESTART_WINDOW s: given up"
  restarts=(${recent[@]+"${recent[@]}"} "$now")
}

end_watch() { # CODE MESSAGE
  say "$2"
  if [ -n "$then_delete" ]; then
    local times=0
    until delete --quiet || { find_resource && [ "$resource" = MISSING ]; }; do
      times=$((times + 1))
      [ "$times" -lt $((6 * GRACE)) ] ||
        fail $(($1 ? $1 : 1)) "$name could not be deleted and costs money"
      say "that did not work; trying again"
      sleep "$POLL"
    done
  elif find_resource && [ "$resource" = MISSING ]; then say "there is no $name any more"
  else say "$name still costs money"; fi
  exit "$1"
}

pause() { # POLLS
  local count
  for ((count = 0; count < $1; count++)); do sleep "$POLL"; done
}

watch() {
  local seen before='' begun='' stored='' times=0 patience mute='' own='' code restarts=()
  local refusals=0 failures=0 step=0 now moved=$SECONDS reached
  # The commit of now, also when commits are added while this runs.
  if [ -z "$repo" ]; then
    commit=$(git -C "$HERE" rev-parse "${ref:-HEAD}")
    git -C "$HERE" cat-file -e "$commit:${config#./}" 2>/dev/null ||
      bad "--config $config is not in the commit that is sent; commit it, or name it as it is there"
  fi
  if [ -n "$dry" ]; then
    find_resource; everywhere "$(if_set_up report)"; echo "# after a preemption:"; recover preempted
    return
  fi
  # Later it may be the connection; now it is a login or a project that is missing.
  find_resource || fail 1 "gcloud cannot tell how $name is"
  reached=$(last_step)
  while :; do
    seen=$(observe)
    case $seen in
      running)
        now=$(last_step)
        if [ "$now$before" != "${step}running" ]; then step=$now moved=$SECONDS
        elif [ $((SECONDS - moved)) -ge "$HANG_SECONDS" ]; then seen=hung; fi ;;
      'failed 2') ;; # bad input, or a loss that is none: it would fail again
      failed*) [ "$(last_step)" -le "$reached" ] || seen=crashed ;; # what had gone well may do so again
    esac
    # How an earlier training ended is no reason not to start this one.
    case $begun$seen in finished | stopped | interrupted | crashed | failed*) seen=idle ;; esac
    mute=yes times=$((times + 1))
    [ "$seen" = "$before" ] || { say "$(date '+%F %T') $name: $seen"; times=1; }
    before=$seen patience=1
    case $seen in elsewhere*)
      fail 4 "$name trains in ${seen#elsewhere }; stop it first, or watch it with that --workdir" ;;
    esac
    [ -n "$stored" ] || store_settings
    stored=yes
    case $seen in partial | interrupted | crashed) patience=$GRACE ;; esac
    case $seen in
      finished) end_watch 0 "training has finished" ;;
      stopped) fail 143 "training was stopped by hand; $name still costs money" ;;
      running | partial | hung) begun=yes own='' ;;
      missing) [ -n "$own" ] || fail 1 "there is no $name; create it" ;;
      preempted) own=yes ;;
      # A slice is gone before it is called preempted; the others end because they miss it.
      failed*) [ "$times" -lt "$GRACE" ] || end_watch "${seen#failed }" "training $seen" ;;
      unknown) # who wants it deleted in the end is not left with it
        { [ -n "$then_delete" ] && [ -n "$begun" ]; } ||
          [ "$times" -lt $((6 * GRACE)) ] ||
          fail 1 "gcloud cannot tell how $name is; while it is there it costs money" ;;
    esac
    case $seen in preempted | missing | idle | partial | interrupted | crashed | hung)
      if [ "$times" -ge "$patience" ]; then
        count_restart
        mute='' before=''
        # Inside `if` or `||` recover would not end at its first error.
        set +e
        (set -e; recover "$seen")
        code=$?
        set -e
        case $code in
          0)
            begun=yes refusals=0 failures=0 now=$(last_step)
            reached=$((now > reached ? now : reached)) ;;
          "$REFUSED") # costs nothing, and may take a night: asked less and less often
            unset 'restarts[${#restarts[@]}-1]'
            refusals=$((refusals < 30 ? refusals + 1 : 30))
            say "there was no TPU; trying again"
            pause "$refusals" ;;
          *) # a package index or a connection that is away for a while; nothing was started
            unset 'restarts[${#restarts[@]}-1]'
            failures=$((failures + 1))
            [ "$failures" -lt "$MAX_RESTARTS" ] ||
              end_watch 1 "no start in $failures attempts: given up"
            say "that did not work (exit code $code); trying again"
            pause "$failures" ;;
        esac
      fi ;;
    esac
    sleep "$POLL"
  done
}

# ------------------------------------------------------------------------------------------------

main() {
  local action=${1:-help}
  exec 3>&2 # where commands are shown
  if [ "$action" = dry-run ]; then
    exec 3>&1
    dry=yes action=${2:-help}
    shift
  fi
  case $action in
    help | -h | --help) usage; return ;;
    plan | create | setup | train | watch | status | logs | ssh | stop | resume | delete) ;;
    *) bad "there is no action '$action' ($0 help)" ;;
  esac
  read_settings "$action" "${@:2}"
  check_settings "$action"
  temporary=$(mktemp -d "${TMPDIR:-/tmp}/launch_tpu.XXXXXX")
  trap 'rm -rf "$temporary"' EXIT
  "$action"
  case $action in create | setup | train | resume) store_settings ;; esac
}

main "$@"; exit # on one line: the file may be edited while this runs
