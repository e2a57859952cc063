#!/bin/bash
# The test finds its data, a folder to write to, and nothing on its standard input.
set -eu
[ "$(cat tests/data.txt)" = "some data" ]
echo scratch > "$TEST_TMPDIR/file"
[ -z "$(cat)" ]
