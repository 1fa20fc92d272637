"""Pictures that are one: perceptual hashes, and which of them are near."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector_zoo.errors import ZooError

__all__ = ["NEAR", "merged", "near", "perceptual_hash"]

NEAR = 4
"""Bits of 64 by which the perceptual hashes of one picture may differ."""


def perceptual_hash() -> Callable[[Any], int]:
    """The function from an RGB image to its 64 bits.

    Raises:
        ZooError: The library is not installed.
    """
    try:
        import imagehash
    except ImportError as error:
        raise ZooError("perceptual hashes need imagehash", hint="pip install 'detector-zoo[eval]'") from error

    def phash(image: Any) -> int:
        return int(str(imagehash.phash(image)), 16)

    return phash


def near(hashes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Pairs of at most `NEAR` differing bits, ascending.

    Of NEAR + 1 runs of bits at least one is equal in such a pair, so that only images that share a run are compared.
    """
    found: set[tuple[int, int]] = set()
    edges = np.linspace(0, 64, NEAR + 2).astype(int)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        run = (hashes >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
        order = np.argsort(run, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(run[order])) + 1):
            for at, i in enumerate(members[:-1].tolist()):
                rest = members[at + 1 :]
                close = rest[_bits(hashes[rest] ^ hashes[i]) <= NEAR]
                found.update((min(i, j), max(i, j)) for j in close.tolist())
    return sorted(found)


def merged(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Groups, (N,), with those of each pair of images made one, under the name that comes first."""
    parent = {group: group for group in groups}

    def top(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for i, j in pairs:
        first, second = sorted((top(groups[i]), top(groups[j])))
        parent[second] = first
    return [top(group) for group in groups]


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits of each are set, (N,)."""
    bits = np.unpackbits(values[:, None].view(np.uint8), axis=1)
    return np.asarray(bits.sum(1), np.int64)
