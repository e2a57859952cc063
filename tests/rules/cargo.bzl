"""Longshore seen from Bazel: cargo builds, Bazel tests.

Two small rules and no rule set from outside, written for Bazel 4 to 9 and verified on 4.2.3.

`cargo_binaries` runs cargo once, as a local action in the real source tree, and declares the binaries that it
builds as outputs. `cargo_test` makes a test target of one of them; with `--config=self` it runs as a remote
action.
"""

# Cargo reads its registry and toolchain from the home folder and may fetch crates: never sandboxed, never remote.
_LOCAL = {"local": "1", "no-remote": "1", "no-sandbox": "1", "requires-network": "1"}

def _cargo_binaries_impl(ctx):
    outputs = [ctx.actions.declare_file("bin/" + name) for name in ctx.attr.binaries]
    arguments = ctx.actions.args()
    arguments.add(ctx.file._build)
    arguments.add(ctx.file.manifest)
    arguments.add_all(outputs)
    ctx.actions.run(
        executable = "/bin/bash",
        arguments = [arguments],
        inputs = ctx.files.srcs + [ctx.file.manifest, ctx.file._build],
        outputs = outputs,
        mnemonic = "Cargo",
        progress_message = "Building %d binaries with cargo" % len(outputs),
        execution_requirements = _LOCAL,
        use_default_shell_env = True,
    )
    return [DefaultInfo(files = depset(outputs))]

cargo_binaries = rule(
    implementation = _cargo_binaries_impl,
    doc = "Builds binaries and test binaries of the workspace with cargo.",
    attrs = {
        "binaries": attr.string_list(
            mandatory = True,
            doc = "Names of cargo targets: a binary, or the test binary of a library or of an integration test.",
        ),
        "manifest": attr.label(allow_single_file = True, mandatory = True, doc = "The workspace's Cargo.toml."),
        "srcs": attr.label_list(allow_files = True, doc = "What cargo reads."),
        "_build": attr.label(default = Label("//tests/rules:cargo_build"), allow_single_file = True),
    },
)

def _cargo_test_impl(ctx):
    binary = [file for file in ctx.files.binaries if file.basename == ctx.attr.binary]
    if not binary:
        fail("%s builds no %s" % (ctx.attr.binaries.label, ctx.attr.binary))
    test = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.symlink(output = test, target_file = binary[0], is_executable = True)
    program = [file for file in ctx.files.binaries if file.basename == "longshore"]
    runfiles = ctx.runfiles(files = [binary[0]] + program + ctx.files.data)
    environment = {"LONGSHORE_BIN": program[0].short_path} if program else {}
    return [
        DefaultInfo(executable = test, runfiles = runfiles),
        testing.TestEnvironment(environment),
    ]

cargo_test = rule(
    implementation = _cargo_test_impl,
    doc = "Runs one test binary that a cargo_binaries target builds; LONGSHORE_BIN names the longshore among them.",
    test = True,
    attrs = {
        "binaries": attr.label(mandatory = True, doc = "The cargo_binaries target."),
        "binary": attr.string(mandatory = True, doc = "Which of them to run."),
        "data": attr.label_list(allow_files = True, doc = "Files that the tests read."),
    },
)
