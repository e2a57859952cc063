#!/bin/bash
# Runs until it is killed, with a descendant in a session of its own that must not outlive it. HANG_S is a
# number of seconds that nothing else on the machine sleeps for.
echo "this test hangs"
setsid sleep "$HANG_S" &
exec sleep "$HANG_S"
