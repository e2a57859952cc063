#!/bin/sh
# 0 + 1 + ... + 999.
[ "$(cat many/sum.txt)" = "1000 499500" ]
