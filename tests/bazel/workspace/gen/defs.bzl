"""A rule whose output is a directory."""

def _tree_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [out],
        arguments = [out.path],
        command = """
            # A remote worker makes the folder that an output lies in, never the output itself.
            mkdir -p "$1"
            cd "$1"
            mkdir -p bin deep/er empty
            echo plain > plain.txt
            printf '#!/bin/sh\\necho run\\n' > bin/run
            chmod +x bin/run
            echo leaf > deep/er/leaf.txt
            ln -s plain.txt link.txt
            ln -s deep deep_link
        """,
        mnemonic = "Tree",
    )
    return [DefaultInfo(files = depset([out]))]

tree = rule(implementation = _tree_impl)
