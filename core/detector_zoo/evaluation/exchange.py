"""Inpainting exchange: the original pixels restored outside the edit (INP-X, arXiv 2602.00192)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["KERNEL", "SIGMA", "exchange", "soft_exchange"]

Pixels = NDArray[np.uint8]

KERNEL, SIGMA = 5, 1.1
"""Side and standard deviation of the Gaussian that softens the mask, pixels. The paper tells only the side; 1.1 is
what OpenCV takes for it."""


def exchange(original: Pixels, edited: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """The operator m * edited + (1 - m) * original, with m = 1 in the edited area and nothing in between.

    Args:
        original: (H, W, 3).
        edited: (H, W, 3).
        mask: (H, W), true where the edit is.

    Returns:
        (H, W, 3): outside the mask the original's pixels, bit for bit.

    Raises:
        ValueError: The three are not of one size.
    """
    if original.shape != edited.shape or original.shape[:2] != mask.shape:
        raise ValueError(f"sizes differ: original {original.shape}, edited {edited.shape}, mask {mask.shape}")
    return np.where(mask[..., None], edited, original)


def soft_exchange(original: Pixels, edited: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """`exchange` with the mask blurred by a Gaussian of `KERNEL` pixels as alpha, rounded to the nearest.

    Args:
        original: (H, W, 3).
        edited: (H, W, 3).
        mask: (H, W), true where the edit is; beyond the picture's border it goes on as at the border.

    Returns:
        (H, W, 3): more than two pixels from the mask's border the same as `exchange`.

    Raises:
        ValueError: The three are not of one size.
    """
    hard = exchange(original, edited, mask)
    taps = np.exp(-0.5 * ((np.arange(KERNEL) - KERNEL // 2) / SIGMA) ** 2)
    taps /= taps.sum()
    padded = np.pad(mask.astype(np.float64), KERNEL // 2, mode="edge")
    rows = sum(tap * padded[i : i + mask.shape[0]] for i, tap in enumerate(taps))
    alpha = sum(tap * rows[:, i : i + mask.shape[1]] for i, tap in enumerate(taps))[..., None]
    soft = np.floor(alpha * edited + (1 - alpha) * original + 0.5).astype(np.uint8)
    # The taps sum to one but for rounding; where the window lies on one side nothing is to be mixed.
    edge = (alpha > 1e-9) & (alpha < 1 - 1e-9)
    return np.where(edge, soft, hard)
