"""Score a data set with detectors, into a prediction file that an interrupted run goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from detector_zoo.errors import ImageError
from detector_zoo.evaluation.equalised import copy_of
from detector_zoo.evaluation.samples import Sample
from detector_zoo.loading import LoadedDetector
from detector_zoo.predictions import Journal
from detector_zoo.rows import Prediction
from detector_zoo.scoring import Options, run

__all__ = ["score_set"]

Watch = Callable[[Iterable[str]], Iterable[str]]


def score_set(
    samples: Sequence[Sample],
    detectors: Sequence[LoadedDetector],
    output: Path,
    *,
    equalise: bool = True,
    options: Options | None = None,
    watch: Watch = iter,
) -> list[Prediction]:
    """Score images, one decode each, however many detectors.

    Args:
        samples: The images.
        detectors: Loaded.
        output: Prediction file (.parquet, .jsonl, .csv). Rows that it or its journal holds are not scored again.
        equalise: Score the images' equalised copies.
        options: Of the pipeline.
        watch: Sees the paths pass.

    Returns:
        The rows of these images by these detectors, errors included.

    Raises:
        DatasetError: The file cannot be written, or is in use.
    """
    rows: list[Prediction] = []
    with Journal(output) as journal:
        for scored in run(watch(_paths(samples, equalise)), detectors, options or Options(), journal):
            rows += scored
        journal.finish()
    return rows


def _paths(samples: Sequence[Sample], equalise: bool) -> Iterator[str]:
    for sample in samples:
        if not equalise:
            yield str(sample.path)
            continue
        try:
            yield str(copy_of(sample))
        except ImageError:
            yield str(sample.path)  # the pipeline meets the same cause, and makes it a row
