"""Pictures by the photograph that they were made from."""

from __future__ import annotations

from collections.abc import Sequence

from detector_zoo.evaluation.samples import Sample


def photograph(sample: Sample) -> str:
    """What a sample shares with all that was made from the same photograph."""
    return sample.group or sample.sha256


def first(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Everything that was made from the first photographs, by the hash that they go by; without limit all."""
    kept = set(sorted({photograph(s) for s in samples})[:limit])
    return [s for s in samples if photograph(s) in kept]
