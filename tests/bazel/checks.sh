# Sourced by the scripts that have Bazel build tests/bazel/workspace: a copy of it, commands in it, and what their logs say.

# Where hits are counted, each test writes its test.xml by itself: an action of its own for that, which is the
# default, has the duration of the test among its arguments, so it is not always the same action.
one_action=--noexperimental_split_xml_generation

# prepare_workspace: a copy below $scratch, in which commands are run from here on.
prepare_workspace() {
  cp -r "$repo/tests/bazel/workspace" "$scratch/workspace"
  bazelrc > "$scratch/workspace/.bazelrc"
  cd "$scratch/workspace"
  bazel_workspaces+=("$PWD")
  # The first attempt of //tests:flaky leaves a mark here, whatever user it runs as.
  attempts=$scratch/attempts
  mkdir -m 1777 "$attempts"
  chmod 1777 "$attempts"
}

# run NAME EXPECTED-EXIT-CODE COMMAND [ARGUMENT...]: one Bazel command, remotely; its output goes to NAME.log.
run() {
  local name=$1 expected=$2 code=0 flags
  shift 2
  log=$scratch/$name.log
  mapfile -t flags < <(remote_flags "$port")
  bazel_command "$1" "${flags[@]}" --test_env=ATTEMPTS="$attempts" --color=no --curses=no --test_output=errors \
    "${@:2}" > "$log" 2>&1 || code=$?
  if [ "$code" -eq "$expected" ]; then
    pass "$name: bazel $1 ends with $expected ($(sed -n 's/^INFO: Elapsed time: \([0-9.]*s\).*/\1/p' "$log" | tail -n 1))"
  else
    miss "$name: bazel $1 ended with $code, not $expected" "$log"
  fi
}

# says WHAT PATTERN: the last log has a line that matches.
says() { if grep -q -E "$2" "$log"; then pass "$1"; else miss "$1: no line matches $2" "$log"; fi; }

# is WHAT VALUE TEST...: a number that holds.
is() { if [ "$2" "$3" "$4" ]; then pass "$1 ($2)"; else miss "$1: $2, expected $3 $4" "$log"; fi; }

# only_remote: no process ran anywhere but in longshore.
only_remote() {
  local other
  other=$(sed -n -E 's/^INFO: [0-9]+ process(es)?: (.*)\.$/\2/p' "$log" | tail -n 1 | tr ',' '\n' \
    | grep -v -E '^ *[0-9]+ (remote|remote cache hit|internal)$' || true)
  if [ -z "$other" ]; then pass "nothing ran locally"; else miss "ran elsewhere:$other" "$log"; fi
}
