"""Exact tiling: a convolutional network over an image of any size in bounded memory, with the untiled result.

An output position sees no further than the network's receptive field. A tile that is wider than what it has to
answer for by that much on every side (the halo) therefore gives the positions in its middle exactly what the whole
image would have given them, and where a tile's edge is the image's own, the zeros that pad it are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Geometry", "Tile", "tiles"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the positions of a network's last map lie in the image.

    Attributes:
        stride: Pixels from one position to the next; position r is centred on pixel ``stride * r``.
        radius: Pixels that a position sees to either side of its centre; the receptive field is 2 radius + 1 wide.
    """

    stride: int
    radius: int

    def positions(self, side: int) -> int:
        """Positions along ``side`` pixels."""
        return -(-side // self.stride)


@dataclass(frozen=True, slots=True)
class Span:
    """A tile along one side: pixels ``start`` to ``stop`` go in, positions ``first`` to ``last`` are its own."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the image and the positions that it answers for, stops exclusive."""

    rows: Span
    columns: Span


def tiles(height: int, width: int, geometry: Geometry, pixels: int) -> Iterator[Tile]:
    """Cut an image into tiles, halo included, of at most about ``pixels`` pixels.

    Every position of the image belongs to exactly one tile. Tiles are near squares of nearly one size, because a
    halo costs least there, and as few as the limit allows.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        geometry: Of the network.
        pixels: Limit; where it leaves no room for a halo, tiles answer for one position along a side.
    """
    if height * width <= pixels:
        yield Tile(*(Span(0, side, 0, geometry.positions(side)) for side in (height, width)))
        return
    # An image narrower than a square tile leaves the other side the room.
    side = int(pixels**0.5)
    short = min(height, width)
    long = side if short > side else pixels // short
    limits = (long, side) if height >= width else (side, long)
    rows, columns = (list(_spans(s, geometry, limit)) for s, limit in zip((height, width), limits, strict=True))
    for row in rows:
        for column in columns:
            yield Tile(row, column)


def _spans(side: int, geometry: Geometry, limit: int) -> Iterator[Span]:
    stride, total = geometry.stride, geometry.positions(side)
    if side <= limit:
        yield Span(0, side, 0, total)
        return
    # A tile starts on a multiple of the stride, or its positions would not be the image's.
    halo = geometry.positions(geometry.radius) * stride
    count = -(-total // max(1, (limit - 2 * halo) // stride))
    for index in range(count):
        first, last = total * index // count, total * (index + 1) // count
        start = max(0, first * stride - halo)
        stop = min(side, (last - 1) * stride + halo + 1)
        yield Span(start, stop, first, last)
