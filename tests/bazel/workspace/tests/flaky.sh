#!/bin/bash
# Fails when it runs for the first time: ATTEMPTS, a folder that all attempts share, remembers.
mkdir "$ATTEMPTS/seen" 2> /dev/null && { echo "the first attempt fails"; exit 1; }
[ -d "$ATTEMPTS/seen" ]
