# cargo_build.sh MANIFEST OUTPUT...: builds the workspace and its tests, and copies to each OUTPUT the binary of its
# name: a binary target, or the test binary of a library or of an integration test.
set -euo pipefail

# Bazel shows the tree through symbolic links; cargo is given the real one, so that its own cache works.
workspace=$(dirname "$(readlink -f "$1")")
shift
outputs=$PWD
target=$workspace/target/bazel
mkdir -p "$target"
messages=$(mktemp "$target/messages.XXXXXX")
trap 'rm -f "$messages"' EXIT

cd "$workspace"
for command in build "test --no-run"; do
  # shellcheck disable=SC2086  # two words
  cargo $command --workspace --locked --target-dir "$target" --message-format=json-render-diagnostics >> "$messages"
done

for output in "$@"; do
  name=${output##*/}
  # One JSON object a line; a binary's own unit tests bear its name too, and come later.
  executable=$(grep -F "\"name\":\"$name\"" "$messages" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | head -n 1)
  [ -n "$executable" ] || { echo "cargo built no $name" >&2; exit 1; }
  cp -f "$executable" "$outputs/$output"
done
