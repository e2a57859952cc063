# Sourced by the scripts under tests/: packages, Bazel on its own, and a longshore of one's own.
#
# Everything happens in one scratch folder that is removed at exit, together with the processes started here:
# no Bazel server, no longshore and no file is left behind. LONGSHORE_TESTS_KEEP=1 keeps the folder.

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$repo/target/tests
mkdir -p "$work"
# How long a longshore may take until it listens, and a Bazel command until it is given up.
longshore_start_s_max=30
bazel_s_max=${BAZEL_S_MAX:-1500}

passed=0
failed=0

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# pass WHAT, miss WHAT [LOG]: one result each; the last line of a script is their count.
pass() { passed=$((passed + 1)); say "ok      $1"; }
miss() {
  failed=$((failed + 1))
  say "FAILED  $1"
  if [ $# -gt 1 ] && [ -f "$2" ]; then tail -n 40 "$2" | sed 's/^/        | /'; fi
}

# finish: prints the count and exits, with 1 if something failed.
finish() {
  say "$passed passed, $failed failed"
  exit $((failed > 0))
}

# packages NAME...: installs the Debian packages that are missing, and says which.
packages() {
  local name missing=()
  for name in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  [ "$(id -u)" -eq 0 ] || { say "missing, and only root can install them: ${missing[*]}"; return 1; }
  say "installing from Debian: ${missing[*]}"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
    > "$work/apt.log" 2>&1 || { tail -n 20 "$work/apt.log"; return 1; }
}

# bazel_packages: Debian's Bazel 4.2.3 and what it needs to work without a network.
bazel_packages() {
  packages bazel-bootstrap bazel-platforms bazel-rules-java bazel-rules-proto bazel-skylib g++
}

# bazelrc: the lines that replace by local folders what Bazel would download.
bazelrc() {
  cat <<END
common --override_repository=bazel_skylib=/usr/share/bazel/tools/skylib
common --override_repository=platforms=/usr/share/bazel/tools/platforms
common --override_repository=rules_java=/usr/share/bazel/rules/java
common --override_repository=rules_proto=/usr/share/bazel/rules/proto
common --override_repository=rules_cc=$repo/tests/bazel/overrides/rules_cc
common --override_repository=rules_python=$repo/tests/bazel/overrides/rules_python
common --override_repository=remote_coverage_tools=$repo/tests/bazel/overrides/remote_coverage_tools
END
}

# scratch: a new folder, in $scratch, and its removal at exit.
scratch() {
  local parent=$work
  # Bazel's sandbox puts a file system of its own over /tmp, and refuses to work below it.
  case "$work" in /tmp/*) parent=/var/tmp ;; esac
  scratch=$(mktemp -d "$parent/longshore-${1:-run}.XXXXXX")
  # Actions may run as another user, who has to be able to walk to their folders.
  chmod 755 "$scratch"
  longshore_pid=
  started_pids=()
  bazel_workspaces=()
  trap clean_up EXIT
  trap 'exit 130' INT TERM
}

clean_up() {
  local workspace
  for workspace in ${bazel_workspaces[@]+"${bazel_workspaces[@]}"}; do
    (cd "$workspace" && bazel_command shutdown) > /dev/null 2>&1 || true
  done
  stop_longshore
  local at
  # The last one first: a database does not end before its clients.
  for ((at = ${#started_pids[@]} - 1; at >= 0; at--)); do give_up "${started_pids[at]}"; done
  [ -n "${LONGSHORE_TESTS_KEEP:-}" ] && { say "kept: $scratch"; return; }
  chmod -R u+w "$scratch" 2> /dev/null || true
  rm -rf "$scratch"
}

# bazel_command ARGUMENT...: Bazel in the current folder with nothing of the user's around it.
bazel_command() {
  mkdir -p "$scratch/home" "$scratch/tmp"
  env -i HOME="$scratch/home" TMPDIR="$scratch/tmp" PATH=/usr/local/bin:/usr/bin:/bin USER=tester LANG=C.UTF-8 \
    timeout --kill-after=10 "$bazel_s_max" \
    bazel --nohome_rc --output_user_root="$scratch/bazel" --max_idle_secs=120 "$@"
}

# remote_flags PORT: everything runs remotely, or not at all.
remote_flags() {
  printf '%s\n' --remote_executor="grpc://127.0.0.1:$1" --noremote_local_fallback --spawn_strategy=remote \
    --genrule_strategy=remote --strategy=TestRunner=remote --remote_timeout=120
}

# processes KIND LOG: how many processes of a kind ("remote", "remote cache hit", "local", "internal") the last
# summary line in a log of Bazel's counts.
processes() {
  sed -n -E 's/^INFO: [0-9]+ process(es)?: (.*)\.$/\2/p' "$2" | tail -n 1 | tr ',' '\n' \
    | sed -n -E "s/^ *([0-9]+) $1\$/\1/p" | grep . || echo 0
}

# build_longshore: builds the binary and leaves its path in $longshore; LONGSHORE_BIN names one that is there.
build_longshore() {
  longshore=${LONGSHORE_BIN:-}
  [ -z "$longshore" ] || return 0
  (cd "$repo" && cargo build --quiet --locked --release --bin longshore)
  longshore=$repo/target/release/longshore
}

# start_longshore ROOT [FLAG...]: starts it on a free port and waits until it says that it listens; leaves
# $longshore_pid and $port. Its output goes to ROOT.log.
start_longshore() {
  local root=$1 line=
  shift
  : > "$root.log"
  start_apart "$longshore" --listen 127.0.0.1:0 --root "$root" "$@" > "$root.log" 2>&1
  longshore_pid=$started
  for _ in $(seq $((longshore_start_s_max * 10))); do
    line=$(grep -o -E 'grpc://127\.0\.0\.1:[0-9]+' "$root.log" | head -n 1) && break
    kill -0 "$longshore_pid" 2> /dev/null || break
    sleep 0.1
  done
  if [ -z "$line" ]; then
    cat "$root.log" >&2
    die "longshore did not start"
  fi
  port=${line##*:}
}

# stop_longshore [SIGNAL]: ends it and waits until it has gone.
stop_longshore() {
  [ -n "${longshore_pid:-}" ] || return 0
  kill "-${1:-TERM}" "$longshore_pid" 2> /dev/null || true
  wait "$longshore_pid" 2> /dev/null || true
  longshore_pid=
}

# free_port: a port of 127.0.0.1 that nobody listens at now.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# wait_for_port PORT SECONDS PID: until somebody listens there; fails if PID ends or the time passes.
wait_for_port() {
  local _
  for _ in $(seq $(($2 * 10))); do
    (: < "/dev/tcp/127.0.0.1/$1") 2> /dev/null && return 0
    kill -0 "$3" 2> /dev/null || return 1
    sleep 0.1
  done
  return 1
}

# start_apart COMMAND...: a process in the background that does not hear a terminal's Ctrl-C: what it is there for may
# have something to say first. Leaves $started.
start_apart() {
  setsid "$@" < /dev/null &
  started=$!
}

# start LOG COMMAND...: a process in the background that is ended at exit; leaves $started.
start() {
  local log=$1
  shift
  start_apart "$@" > "$log" 2>&1
  started_pids+=("$started")
}

# stop_started PID [SIGNAL]: ends such a process and waits until it has gone.
stop_started() {
  kill "-${2:-TERM}" "$1" 2> /dev/null || true
  wait "$1" 2> /dev/null || true
}

# give_up PID: ends such a process, whatever it is at: a longshore that is asked twice waits for nothing.
give_up() {
  local _
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -TERM "$1" 2> /dev/null || break
    sleep 0.5
  done
  stop_started "$1" KILL
}

# start_worker ROOT CONFIG [FLAG...]: a longshore that works for the schedulers of a configuration; leaves $started
# when it says that it works. Its output goes to ROOT.log.
start_worker() {
  local root=$1 config=$2
  shift 2
  start "$root.log" "$longshore" worker --config "$config" --root "$root" "$@"
  for _ in $(seq $((longshore_start_s_max * 10))); do
    grep -q 'works as' "$root.log" && return 0
    kill -0 "$started" 2> /dev/null || break
    sleep 0.1
  done
  cat "$root.log" >&2
  die "a worker did not start"
}

# gone PATTERN SECONDS: no process matches any more, within that time.
gone() {
  local _
  for _ in $(seq $(($2 * 10))); do
    pgrep -f "$1" > /dev/null || return 0
    sleep 0.1
  done
  return 1
}

# there PATTERN SECONDS: a process matches, within that time.
there() {
  local _
  for _ in $(seq $(($2 * 10))); do
    if pgrep -f "$1" > /dev/null; then return 0; fi
    sleep 0.1
  done
  return 1
}

# debian_source NAME: the unpacked source package NAME below target/tests/sources, downloaded once; prints its path.
#
# The deb-src lines are derived from the machine's own sources, in a configuration of our own.
debian_source() {
  local name=$1 folder=$work/sources apt=$work/apt release
  mkdir -p "$folder"
  if [ ! -d "$folder/$name" ]; then
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    if [ ! -d "$apt" ]; then
      mkdir -p "$apt/parts" "$apt/lists/partial" "$apt/cache/archives/partial"
      touch "$apt/sources.list"
      local file
      for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        [ -f "$file" ] && grep -q -E "(^|[ :])$release( |\$)" "$file" || continue
        sed -E 's/^Types: .*/Types: deb-src/; s/^deb /deb-src /' "$file" > "$apt/parts/${file##*/}"
      done
      # A part has to be named for what it holds.
      [ ! -f "$apt/parts/sources.list" ] || mv "$apt/parts/sources.list" "$apt/parts/main.list"
    fi
    local options=(-o "Dir::Etc::SourceList=$apt/sources.list" -o "Dir::Etc::SourceParts=$apt/parts"
      -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    [ -f "$apt/updated" ] || { apt-get "${options[@]}" update > "$apt/log" 2>&1 && touch "$apt/updated"; } \
      || { cat "$apt/log" >&2; return 1; }
    rm -rf "$folder/$name.part" && mkdir "$folder/$name.part"
    (cd "$folder/$name.part" && apt-get "${options[@]}" source --download-only --only-source "$name" \
      && dpkg-source --no-check -x ./*.dsc tree) >> "$apt/log" 2>&1 || { tail -n 20 "$apt/log" >&2; return 1; }
    mv "$folder/$name.part/tree" "$folder/$name"
    rm -rf "$folder/$name.part"
  fi
  printf '%s\n' "$folder/$name"
}

# abseil_workspace FOLDER: abseil's sources there, ready for bazel_command.
abseil_workspace() {
  local sources googletest benchmark
  sources=$(debian_source abseil)
  googletest=$(debian_source googletest)
  benchmark=$(debian_source benchmark)
  cp -r "$sources" "$1"
  bazel_workspaces+=("$1")
  {
    bazelrc
    echo "common --override_repository=com_google_googletest=$googletest"
    echo "common --override_repository=com_github_google_benchmark=$benchmark"
  } >> "$1/.bazelrc"
}

# abseil_strings: abseil's tests of strings, locally and through what listens at $port, compared.
abseil_strings() {
  if "$repo/tests/abseil/run" --strings --at="$port"; then pass "abseil's strings"; else miss "abseil's strings"; fi
}
