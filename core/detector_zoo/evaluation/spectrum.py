"""Spectral power of pictures, and how an autoencoder's error follows a photograph's fine detail.

The two tests of Inpainting Exchange (arXiv 2602.00192): a latent autoencoder loses power at high frequencies all over
the picture, and most where the photograph has fine detail.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BINS",
    "BLOCK",
    "HIGH",
    "error_correlation",
    "frequencies",
    "high_frequency_loss",
    "luminance",
    "radial_power",
]

Floats = NDArray[np.float64]

BINS = 32
"""Rings of equal width from 0 to 0.5 cycles a pixel; what lies in the spectrum's corners beyond is left out."""
HIGH = 0.25
"""Cycles a pixel from which on a frequency counts as high."""
BLOCK = 8
"""Side of the blocks over which error and detail are averaged, pixels."""


def luminance(pixels: NDArray[np.uint8]) -> Floats:
    """(H, W, 3) uint8 to Rec. 601 luma in [0, 1], (H, W)."""
    return np.asarray(pixels @ np.array([0.299, 0.587, 0.114]) / 255, np.float64)


def frequencies() -> Floats:
    """Centres of the rings, (BINS,), cycles a pixel."""
    return np.asarray((np.arange(BINS) + 0.5) / (2 * BINS), np.float64)


def radial_power(pixels: NDArray[np.uint8]) -> Floats:
    """Mean power of the luma in each ring of frequencies.

    Args:
        pixels: (H, W, 3), at least 2 * BINS on each side, so that no ring is empty.

    Returns:
        (BINS,), per pixel of a Hann-windowed picture whose mean was taken off.

    Raises:
        ValueError: The picture is too small.
    """
    if min(pixels.shape[:2]) < 2 * BINS:
        raise ValueError(f"a spectrum needs {2 * BINS} pixels on each side, not {pixels.shape[1]} x {pixels.shape[0]}")
    grey = luminance(pixels)
    rows, columns = (np.hanning(side + 2)[1:-1] for side in grey.shape)
    window = rows[:, None] * columns
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.rfftfreq(grey.shape[1]))
    ring = (radius * 2 * BINS).astype(int)
    inside = ring < BINS
    # Half of the spectrum is left out by rfft2; all but its first and last column stand for two.
    twice = np.full(power.shape, 2.0)
    twice[:, 0] = 1
    if grey.shape[1] % 2 == 0:
        twice[:, -1] = 1
    total = np.bincount(ring[inside], (power * twice)[inside], BINS)
    return np.asarray(total / np.bincount(ring[inside], twice[inside], BINS), np.float64)


def high_frequency_loss(power: Floats, reference: Floats) -> float:
    """How far the power from `HIGH` on lies below a reference's, in dB; both from `radial_power`.

    NaN where the reference has none.
    """
    high = frequencies() >= HIGH
    ours, theirs = power[high].sum(), reference[high].sum()
    return float(10 * np.log10(theirs / ours)) if ours > 0 and theirs > 0 else float("nan")


def error_correlation(
    original: NDArray[np.uint8], edited: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
) -> float:
    """Pearson's r between the error of a reconstruction and the photograph's local high-frequency energy.

    Over blocks of `BLOCK` pixels that lie wholly outside the mask: the mean absolute difference of the luma, and the
    mean squared difference of the photograph's luma from its 3x3 box average.

    Args:
        original: (H, W, 3).
        edited: (H, W, 3), the photograph after an autoencoder, with or without an edit.
        mask: (H, W), true where the edit is.

    Returns:
        In [-1, 1]; NaN where it is not defined: fewer than 3 blocks, or nothing changed outside the mask.
    """
    before, after = luminance(original), luminance(edited)
    padded = np.pad(before, 1, mode="reflect")
    box = sum(padded[i : i + before.shape[0], j : j + before.shape[1]] for i in range(3) for j in range(3)) / 9
    outside = np.ones(before.shape, bool) if mask is None else ~mask
    whole = _blocks(outside.astype(np.float64)) == 1
    error, detail = (_blocks(values)[whole] for values in (np.abs(after - before), (before - box) ** 2))
    if len(error) < 3 or np.ptp(error) == 0 or np.ptp(detail) == 0:
        return float("nan")
    return float(np.corrcoef(error, detail)[0, 1])


def _blocks(values: Floats) -> Floats:
    """Means over blocks; what does not fill one at the right and the bottom is left out."""
    height, width = (side // BLOCK for side in values.shape)
    cut = values[: height * BLOCK, : width * BLOCK]
    return np.asarray(cut.reshape(height, BLOCK, width, BLOCK).mean((1, 3)), np.float64)
