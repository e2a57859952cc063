#!/usr/bin/env python3
"""Writes the seeds that are messages, beside this file; texts are kept as they are."""

import hashlib
import pathlib

FOLDER = pathlib.Path(__file__).parent


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def field(tag, content):
    """A field of that tag: a number, or anything with a length."""
    if isinstance(content, int):
        return varint(tag << 3) + varint(content)
    if isinstance(content, str):
        content = content.encode()
    return varint(tag << 3 | 2) + varint(len(content)) + content


def digest(content, size=None):
    return field(1, hashlib.sha256(content).hexdigest()) + field(2, len(content) if size is None else size)


def file(name, *more):
    return field(1, field(1, name) + field(2, digest(name.encode())) + b"".join(more))


def child(name, directory):
    return field(2, field(1, name) + field(2, digest(directory)))


def link(name, target):
    return field(3, field(1, name) + field(2, target))


def mode(bits):
    return field(3, field(1, bits))


TIME = field(2, field(1, -1) + field(2, 999_999_999))

# One message for each rule, kept or broken.
DIRECTORIES = {
    "empty": b"",
    "all-kinds": file("a") + file("x", field(4, 1), field(6, TIME + mode(0o755))) + child("d", b"")
    + link("l", "../elsewhere") + field(5, mode(0o1755)),
    "unsorted": file("b") + file("a"),
    "twice": file("a") + file("a"),
    "twice-in-other-lists": file("a") + link("a", "t"),
    "dots": file(".."),
    "slash": file("a/b"),
    "nul": file("a\0b"),
    "no-name": file(""),
    "long-name": file("n" * 256),
    "no-digest": field(1, field(1, "no-digest")),
    "negative-size": field(1, field(1, "negative") + field(2, digest(b"negative", -1))),
    "no-target": link("l", ""),
    "set-user-id": field(5, mode(0o4755)),
    "length": b"\x0a\xff\xff\xff\xff\x0f",
    "not-utf8": b"\x0a\x04\x0a\x02\xff\xfe",
}


def tree(root, *children):
    return field(1, root) + b"".join(field(2, message) for message in children)


LEAF = file("f") + link("l", "f")
MIDDLE = child("a", LEAF) + child("b", LEAF)
ROOT = child("x", MIDDLE) + child("y", MIDDLE) + child("z", LEAF)
# Each level has the one below it twice.
LEVELS = [LEAF]
for _ in range(70):
    LEVELS.append(child("a", LEVELS[-1]) + child("b", LEVELS[-1]))

TREES = {
    "empty": tree(b""),
    "one-level": tree(LEAF),
    "shared": tree(ROOT, MIDDLE, LEAF),
    "children-first": tree(ROOT, LEAF, MIDDLE),
    "lacks-a-child": tree(ROOT, MIDDLE),
    "child-twice": tree(ROOT, MIDDLE, LEAF, LEAF),
    "bomb": tree(LEVELS[-1], *LEVELS[:-1]),
    "length": b"\x12\xff\xff\xff\xff\x0f",
}

for target, seeds in [("directory", DIRECTORIES), ("tree", TREES)]:
    for name, message in seeds.items():
        (FOLDER / target).mkdir(exist_ok=True)
        (FOLDER / target / name).write_bytes(message)
