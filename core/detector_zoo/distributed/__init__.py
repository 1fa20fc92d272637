"""Score millions of images on many processes or machines, by Ray Data (extra ``[ray]``)."""

from __future__ import annotations

from detector_zoo.distributed.engine import PART_IMAGES, Cluster, connected, score
from detector_zoo.distributed.parts import Count

__all__ = ["PART_IMAGES", "Cluster", "Count", "connected", "score"]
