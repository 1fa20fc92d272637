"""What names, hashes and sources of weights look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["LOWER", "SOURCES", "WORD", "is_hex", "is_name", "loopback"]

# Checked by hand: every catalogue is read by `zoo list`, which should not wait for a dozen patterns to be compiled.
_HEX = frozenset("0123456789abcdef")
LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")
_LONGEST = 200  # it becomes the name of a file
WORD = LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ.-")


def is_hex(text: str, shortest: int, longest: int) -> bool:
    """Whether a text is so many lower-case hexadecimal digits."""
    return shortest <= len(text) <= longest and _HEX.issuperset(text)


def is_name(text: str) -> bool:
    """Whether a text has the form ``method.tag``."""
    method, _, tag = text.partition(".")
    lower = LOWER.issuperset(method) and LOWER.issuperset(tag) and len(text) <= _LONGEST
    return lower and method[:1].isalpha() and tag[:1].isalnum()


def _stays_inside(path: str) -> bool:
    """Whether a relative path of / and names, none of which leads up or away."""
    return not any(character in path for character in "\\\0") and all(
        part not in {"", ".", ".."} for part in path.split("/")
    )


def _is_package(place: str) -> bool:
    package, _, path = place.partition("/")
    return all(part.isidentifier() for part in package.split(".")) and _stays_inside(path)


def _is_hub(place: str) -> bool:
    org, repo, path = [*place.split("/", 2), "", ""][:3]
    return all(name and WORD.issuperset(name) for name in (org, repo)) and _stays_inside(f"{org}/{repo}/{path}")


def _is_url(place: str) -> bool:
    return place.startswith(("http://", "https://")) and not any(c.isspace() for c in place)


def loopback(url: str) -> bool:
    """Whether an address is on this machine, where plain http is good enough: tests, local mirrors."""
    from urllib.parse import urlsplit

    return urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}


SOURCES: Mapping[str, Callable[[str], bool]] = {
    "package": _is_package,
    "hub": _is_hub,
    "url": _is_url,
    "file": lambda place: not place,
}
"""By scheme, whether what follows it is a place; none leads out of where it belongs."""
