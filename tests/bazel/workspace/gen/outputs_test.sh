#!/bin/sh
# What the actions of this package wrote is what they were told to write.
set -eu
cd gen
expect() {
  [ "$(cat "$1")" = "$2" ] || { echo "$1: expected '$2', found '$(cat "$1")'"; exit 1; }
}
expect count.txt 3
expect empty.txt ""
expect from_tool.txt "from the tool"
expect through_link.txt linked
expect tree.txt "plain
run
leaf
plain
leaf"
[ -x tool.sh ] || { echo "tool.sh is not executable"; exit 1; }
