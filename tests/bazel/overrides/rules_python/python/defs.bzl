"""The Python rules that are built into Bazel 4, under the names that @rules_python gives them."""

py_binary = native.py_binary
py_library = native.py_library
py_runtime = native.py_runtime
py_test = native.py_test
