#!/bin/sh
[ "$(cat cc/greeted.txt)" = "Hello, Bazel!" ]
