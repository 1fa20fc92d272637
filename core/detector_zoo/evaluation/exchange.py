"""Inpainting exchange: the original pixels restored outside the edit (INP-X, arXiv 2602.00192)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["exchange"]


def exchange(original: NDArray[np.uint8], edited: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
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
