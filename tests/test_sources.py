"""What a list of arguments stands for."""

import io
import itertools
import os
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector_zoo.errors import DatasetError
from detector_zoo.sources import IMAGE_SUFFIXES, printable, walk


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [
        "photos/b.png",
        "photos/a.JPG",
        "photos/notes.txt",
        "photos/.hidden.png",
        "photos/.cache/c.png",
        "photos/deep/er/d.webp",
        "photos/deep/er/e[1].png",
        "photos/zz.png/inside.gif",
        "text/readme.md",
        "a.png",
    ]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "photos" / "broken.png").symlink_to("nowhere")
    return tmp_path


PHOTOS = [
    "photos/a.JPG",
    "photos/b.png",
    "photos/broken.png",
    "photos/deep/er/d.webp",
    "photos/deep/er/e[1].png",
    "photos/link.png",
    "photos/zz.png/inside.gif",
]


def listed(*arguments: str, text: str | bytes | None = None) -> list[str]:
    stdin = None
    if isinstance(text, bytes):
        stdin = io.TextIOWrapper(io.BytesIO(text), encoding="ascii")
    elif text is not None:
        stdin = io.StringIO(text)
    return list(walk(arguments, stdin=stdin))


def test_a_directory_is_walked_in_order_without_hidden_names_or_linked_directories(tree):
    assert listed("photos") == PHOTOS
    assert listed("photos/") == PHOTOS
    assert listed("./photos") == [f"./{path}" for path in PHOTOS]
    assert listed(str(tree / "photos")) == [str(tree / path) for path in PHOTOS]
    assert listed("photos/loop") == [path.replace("photos", "photos/loop", 1) for path in PHOTOS], "it was named"


def test_files_are_handed_on_as_they_are(tree):
    names = ["text/readme.md", "missing.png", "photos/.hidden.png", "photos/deep/er/e[1].png", "", "/dev/null"]
    assert listed(*names) == names
    assert listed("a.png", "a.png") == ["a.png", "a.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.png", ["photos/b.png", "photos/broken.png", "photos/link.png", "photos/zz.png/inside.gif"]),
        ("photos/?.*", ["photos/a.JPG", "photos/b.png"]),
        ("photos/[ab].*", ["photos/a.JPG", "photos/b.png"]),
        ("ph*/deep/*/d.webp", ["photos/deep/er/d.webp"]),
        ("photos/d*", ["photos/deep/er/d.webp", "photos/deep/er/e[1].png"]),
        ("**/*.webp", ["photos/deep/er/d.webp"]),
        ("**/er/**/*.webp", ["photos/deep/er/d.webp"]),
        ("photos/**/**/e*", ["photos/deep/er/d.webp", "photos/deep/er/e[1].png"]),
        ("photos/**/.*.png", ["photos/.hidden.png"]),
        ("text/*", ["text/readme.md"]),
        ("*.png", ["a.png"]),
        ("./*.png", ["./a.png"]),
    ],
)
def test_patterns_that_the_shell_left_alone(tree, pattern, expected):
    assert listed(pattern) == expected


def test_an_absolute_pattern(tree):
    assert listed(f"{tree}/*.png") == [f"{tree}/a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no image was named"),
        (["text"], "text: no image in this directory"),
        (["photos/*.bmp"], "photos/*.bmp: nothing matches this pattern"),
        (["nowhere/*.png"], "nowhere/*.png: nothing matches this pattern"),
        (["a.png", "te\nxt*"], r"te\nxt*: nothing matches this pattern"),
    ],
)
def test_a_request_with_nothing_in_it(tree, arguments, message):
    with pytest.raises(DatasetError) as caught:
        listed(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png\nb c.png\n\n  \nlast.png", ["a.png", "b c.png", "last.png"]),
        ("a.png\r\nb.png\r\n", ["a.png", "b.png"]),
        ("a\nb.png\0c.png\0\0", ["a\nb.png", "c.png"]),
        ("a.png\0", ["a.png"]),
        ("photos\n*.png\n", [*PHOTOS, "*.png"]),
        ("", []),
    ],
)
def test_paths_on_standard_input(tree, text, expected):
    assert listed("-", text=text) == expected
    assert listed("-", text=text.encode()) == expected


def test_standard_input_may_name_files_that_are_not_valid_text(tree):
    assert listed("-", text=b"\xff\xfe.png\nfoto-\xc3\xa9.png\n") == [os.fsdecode(b"\xff\xfe.png"), "foto-é.png"]


def test_standard_input_that_is_no_list_of_paths():
    with pytest.raises(DatasetError, match="newlines at first and by NUL later"):
        listed("-", text=b"a.png\n" * 20_000 + b"\0")
    with pytest.raises(DatasetError, match="not a list of paths"):
        listed("-", text=b"x" * (3 << 20))


def test_standard_input_is_read_as_the_paths_come():
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin, os.fdopen(writer, "wb", buffering=0) as producer:
        paths = walk(["-"], stdin=stdin)
        for name in ("first.png", "second.png"):
            producer.write(f"{name}\n".encode())
            assert next(paths) == name  # would block for ever if the walk waited for more
        producer.close()
        assert list(paths) == []


def test_arguments_are_taken_as_they_come(tree):
    def arguments() -> Iterable[str]:
        yield "a.png"
        raise AssertionError("too early")

    assert next(walk(arguments())) == "a.png"


def test_an_unreadable_directory_is_an_error():
    script = """
        import os, tempfile
        from detector_zoo.sources import walk
        from detector_zoo.errors import DatasetError
        folder = tempfile.mkdtemp()
        os.mkdir(f"{folder}/closed", 0)
        os.chmod(folder, 0o755)
        os.chdir(folder)
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            list(walk(["."]))
        except DatasetError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "./closed: the directory cannot be read (Permission denied)\n"


def test_a_tree_deeper_than_pythons_stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    depth = 1200
    for _ in range(depth):  # one at a time: the whole path is longer than the system takes
        Path("d").mkdir()
        os.chdir("d")
    Path("x.png").touch()
    os.chdir(tmp_path)
    found = list(walk(["d"]))
    # Nobody else can: shutil, and with it pytest, gives up on such a tree.
    subprocess.run(["rm", "-r", "d"], check=True)
    assert found == ["d/" * depth + "x.png"]


def test_memory_is_flat(tmp_path):
    for folder in range(40):
        (tmp_path / str(folder)).mkdir()
        for file in range(100):
            (tmp_path / str(folder) / f"{file:090}.png").touch()

    def peak(arguments: list[str], stdin: io.TextIOBase | None = None) -> int:
        tracemalloc.start()
        count = sum(1 for _ in walk(arguments, stdin=stdin))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count >= 4000
        return highest

    assert peak([str(tmp_path)]) < 200_000
    assert peak([f"{tmp_path}/**/*.png"]) < 200_000

    class Endless(io.TextIOBase):
        blocks = itertools.repeat("x" * 100 + "\n", 50_000)

        def read(self, size: int | None = -1, /) -> str:
            return next(self.blocks, "")

    assert peak(["-"], Endless()) < 200_000


def test_suffixes_are_lower_case_with_a_dot():
    assert {".jpg", ".jpeg", ".png", ".webp", ".avif", ".heic", ".tif"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


@settings(deadline=None)
@given(st.text(st.characters(codec=None)))
def test_printable_is_one_line_and_leaves_plain_text_alone(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")
    if text.isprintable():
        assert shown == text
