"""What to score: files, directories, patterns and lists of paths, as one lazy stream of paths.

A file that was named is always handed on, whatever it is called and whether or not it exists: the decoder says
what is wrong with it, and the answer belongs to that file. Only a request with nothing to score in it is an
error here. Memory is flat: beside the stream itself, the names in the directories on the way down are held.
"""

# Paths stay strings: they are handed on as they were given, "./a" included, and there may be millions.
# ruff: noqa: PTH112, PTH118, PTH122, PTH206

from __future__ import annotations

import fnmatch
import glob
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TextIO

from detector_zoo.errors import DatasetError

__all__ = ["IMAGE_SUFFIXES", "SUFFIX_FORMATS", "printable", "walk"]

SUFFIX_FORMATS: Mapping[str, str] = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jpx": "JPEG2000",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".ico": "ICO",
    ".qoi": "QOI",
}
"""The suffixes that mark an image in a directory, and the format (Pillow's name) that each one promises."""

IMAGE_SUFFIXES: frozenset[str] = frozenset(SUFFIX_FORMATS)

_BLOCK = 1 << 16
_LONGEST_PATH = 1 << 20
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""Text on one line: control and direction characters and undecodable bytes become escapes (``\n``, ``\x1b``)."""
    return "".join(
        char.encode("unicode_escape").decode("ascii") if unicodedata.category(char) in _UNPRINTABLE else char
        for char in text
    )


def walk(arguments: Iterable[str], *, stdin: TextIO | None = None) -> Iterator[str]:
    r"""Yield the path of every image that the arguments stand for.

    Args:
        arguments: Each one a file (handed on as it is, even if it is missing), a directory (searched recursively:
            names in order, files with a suffix of `IMAGE_SUFFIXES`, no hidden names, no symbolic links to
            directories), a pattern that the shell did not expand (``*``, ``?``, ``[...]``, ``**`` for any depth;
            only if no file has that literal name; a directory that it matches is searched), or ``-`` for
            paths on standard input, one a line, or separated by NUL if the input contains NUL. A list may repeat
            a path and so may two arguments; each is handed on as often as it is named.
        stdin: The stream that ``-`` reads; the process's own by default. Read as the paths are asked for.

    Yields:
        Paths, relative if the argument was.

    Raises:
        DatasetError: There is no argument, a directory or a pattern has no image in it, a directory cannot be
            read, or standard input is not a list of paths.
    """
    empty = True
    for argument in arguments:
        empty = False
        if argument == "-":
            yield from _listed(sys.stdin if stdin is None else stdin)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            yield from _at_least_one(_matches(argument), f"{printable(argument)}: nothing matches this pattern")
        else:
            yield from _named(argument)
    if empty:
        raise DatasetError("no image was named", hint="name files, directories, patterns, or - for a list on stdin")


def _named(path: str) -> Iterator[str]:
    """A path that was given: the images below a directory, anything else as it is."""
    if os.path.isdir(path):
        return _at_least_one(_below(path), f"{printable(path)}: no image in this directory")
    return iter((path,))


def _at_least_one(paths: Iterator[str], message: str) -> Iterator[str]:
    first = next(paths, None)
    if first is None:
        raise DatasetError(message, hint=f"images are files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    yield first
    yield from paths


def _below(directory: str) -> Iterator[str]:
    """Images below a directory, depth first."""
    return _descend(directory, (), lambda state, name: None if name.startswith(".") else state)


def _descend(
    top: str,
    state: tuple[int, ...],
    step: Callable[[tuple[int, ...], str], tuple[int, ...] | None],
    final: int | None = None,
) -> Iterator[str]:
    """Depth-first walk that carries a state; ``step`` gives the state below a name, or None to leave it out.

    Args:
        top: Where to start; "" for the current directory.
        state: The state at the top.
        step: The transition.
        final: With None, files are yielded by their suffix. With a number, files and whole directories are
            yielded where the number is part of the state.
    """
    # A stack, not recursion: a tree may be deeper than Python's stack, and a generator in a generator in a
    # generator passes every path through each of them.
    stack = [iter(_entries(top))]
    states = [state]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            states.pop()
            continue
        name, path, is_directory, is_link = entry
        below = step(states[-1], name)
        if below is None:
            continue
        chosen = os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES if final is None else final in below
        if not is_directory:
            if chosen:
                yield path
        elif final is not None and chosen:
            yield from _below(path)
        elif not is_link:
            stack.append(iter(_entries(path)))
            states.append(below)


def _entries(directory: str) -> list[tuple[str, str, bool, bool]]:
    """(name, path, is a directory, is a symbolic link) of everything in a directory, by name."""
    try:
        with os.scandir(directory or os.curdir) as entries:
            found = [(entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries]
    except OSError as error:
        where = printable(directory) or os.curdir
        raise DatasetError(f"{where}: the directory cannot be read ({error.strerror})") from error
    return [(name, os.path.join(directory, name), is_dir, is_link) for name, is_dir, is_link in sorted(found)]


def _matches(pattern: str) -> Iterator[str]:
    """What a pattern matches, each path once.

    The pattern is run as a small automaton beside one walk of the tree, so that no path can come twice however
    many ways ``**`` has to match it, and so that nothing but the current directories is held.
    """
    parts = pattern.replace(os.altsep, os.sep).split(os.sep) if os.altsep else pattern.split(os.sep)
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    top = os.sep.join(parts[:fixed])
    if fixed and not top:
        top = os.sep
    parts = [part for part in parts[fixed:] if part]
    if top and not os.path.isdir(top):
        return iter(())

    def close(state: Iterable[int]) -> tuple[int, ...]:
        closed = set(state)
        for index in range(len(parts)):
            if index in closed and parts[index] == "**":
                closed.add(index + 1)
        return tuple(sorted(closed))

    def step(state: tuple[int, ...], name: str) -> tuple[int, ...] | None:
        following = set()
        for index in state:
            if index == len(parts):
                continue
            part = parts[index]
            if name.startswith(".") and not part.startswith("."):
                continue
            if part == "**":
                following.add(index)
            elif fnmatch.fnmatch(name, part):
                following.add(index + 1)
        return close(following) or None

    return _descend(top, close({0}), step, final=len(parts))


def _listed(stream: TextIO) -> Iterator[str]:
    """Paths from a list."""
    separator = b""
    pending = b""
    for block in _blocks(stream):
        if not separator:
            separator = b"\0" if b"\0" in block else b"\n"
        elif separator == b"\n" and b"\0" in block:
            raise DatasetError("standard input: paths separated by newlines at first and by NUL later")
        *records, pending = (pending + block).split(separator)
        if len(pending) > _LONGEST_PATH:
            raise DatasetError("standard input: not a list of paths (a line longer than 1 MiB)")
        for record in records:
            yield from _record(record)
    yield from _record(pending)


def _record(record: bytes) -> Iterator[str]:
    path = os.fsdecode(record.removesuffix(b"\r"))
    if path.strip():
        yield from _named(path)


def _blocks(stream: TextIO) -> Iterator[bytes]:
    """What the stream has, as soon as it has it.

    Bytes, where they can be had, because a file name need not be valid in the encoding of standard input; and
    ``read1``, because ``read`` would wait for a full block from a slow producer.
    """
    read1 = getattr(getattr(stream, "buffer", None), "read1", None)
    if read1 is not None:
        yield from iter(lambda: read1(_BLOCK), b"")
    else:
        yield from (os.fsencode(text) for text in iter(lambda: stream.read(_BLOCK), ""))
