"""Text of strangers made fit for one line of a terminal.

What a plugin, a card or an exception says may hold line ends, escape sequences that move the cursor or set the
window's title, characters that turn the direction of writing, or a megabyte of anything.
"""

from __future__ import annotations

__all__ = ["one_line", "plain"]


def plain(text: str, limit: int | None = None) -> str:
    r"""``text`` with every unprintable character as an escape (``\x1b``), cut after ``limit`` characters.

    Runs of white space, line ends included, become one space where the text is not printable as it stands.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():  # nearly always, and ten thousand times faster than looking at each character
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an exception says, even one whose ``__str__`` raises or that says nothing."""
    try:
        text = str(error)
    except BaseException as second:  # noqa: BLE001 - the class is a stranger's code
        return f"no message ({type(second).__name__} while reading it)"
    if not text.strip() and isinstance(error, MemoryError):
        return "out of memory"
    return plain(" ".join(text[: 10 * limit].split()), limit) or "no message"
