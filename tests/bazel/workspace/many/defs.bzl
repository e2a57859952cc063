"""One action with many inputs."""

def _many_inputs_impl(ctx):
    files = []
    for i in range(ctx.attr.count):
        file = ctx.actions.declare_file("%s.inputs/%d/%d.txt" % (ctx.label.name, i % 40, i))
        ctx.actions.write(file, "%d\n" % i)
        files.append(file)
    out = ctx.actions.declare_file(ctx.label.name + ".txt")
    args = ctx.actions.args()
    args.add(out)
    args.add_all(files)
    ctx.actions.run_shell(
        inputs = files,
        outputs = [out],
        arguments = [args],
        command = "out=$1; shift; cat \"$@\" | awk '{ n += $1 } END { print NR, n }' > $out",
        mnemonic = "ManyInputs",
    )
    return [DefaultInfo(files = depset([out]), runfiles = ctx.runfiles(files = [out]))]

many_inputs = rule(
    implementation = _many_inputs_impl,
    attrs = {"count": attr.int(mandatory = True)},
)
