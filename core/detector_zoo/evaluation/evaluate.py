"""Predictions and labels to `Results`: score once, evaluate as often as wanted, without a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from detector_zoo import __version__, predictions
from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.bootstrap import numbered
from detector_zoo.evaluation.datasets import DataSet
from detector_zoo.evaluation.equalised import original_of
from detector_zoo.evaluation.intervals import FEW, Metric
from detector_zoo.evaluation.metrics import PROBABILISTIC, TITLES, measure, oracle
from detector_zoo.evaluation.provenance import environment, git_state
from detector_zoo.evaluation.results import Counts, Data, DetectorResult, Generator, Images, Results, Source
from detector_zoo.evaluation.samples import Sample, source_of
from detector_zoo.rows import Prediction

__all__ = ["evaluate", "merge"]

_TOLERANCE = 1e-4
"""Log-odds by which two rows of one key may differ: devices differ in the last bits."""

Key = tuple[str, str, str, str]
By = Literal["generator", "source", "kind"]


class _Measure(Protocol):
    def __call__(self, chosen: NDArray[np.bool_], names: Sequence[str] = ..., /) -> dict[str, Metric]: ...


def merge(files: Sequence[str | os.PathLike[str]]) -> list[Prediction]:
    """The rows of several prediction files, each key once: a score before an error, else the first that comes.

    Raises:
        DatasetError: A file cannot be read, or two rows of one key disagree about the score.
    """
    found: dict[tuple[str, ...], Prediction] = {}
    for file in files:
        for row in predictions.read(file):
            key = (row.sha256 or row.path, *_key(row))
            first = found.get(key)
            if first is None or (first.log_odds is None and row.log_odds is not None):
                found[key] = row
            elif first.log_odds is not None and row.log_odds is not None:
                _require_equal(first, row)
    return list(found.values())


def _require_equal(first: Prediction, second: Prediction) -> None:
    assert first.log_odds is not None  # noqa: S101 (both are scores)
    assert second.log_odds is not None  # noqa: S101
    if abs(first.log_odds - second.log_odds) > _TOLERANCE * max(1.0, abs(first.log_odds)):
        both = f"{first.log_odds:g} and {second.log_odds:g}"
        raise DatasetError(
            f"{first.path}: two scores of one image by {_name(_key(first))}: {both}",
            hint="leave one of the prediction files out",
        )


def _key(row: Prediction) -> Key:
    return row.detector, row.weights, row.weights_sha256, row.core_version


def _name(key: Key) -> str:
    detector, weights, *_ = key
    return f"{detector}.{weights}" if weights and "+" not in weights else detector


@dataclass(slots=True)
class _Column:
    """One detector's scores of the data set, image by image; NaN where there is none."""

    key: Key
    equalised: bool
    log_odds: NDArray[np.float64]
    abstained: NDArray[np.bool_]
    errors: dict[int, str] = field(default_factory=dict)
    thresholds: set[float] = field(default_factory=set)
    calibrated: bool = True


def evaluate(
    data: DataSet, rows: Iterable[Prediction], *, by: By = "generator", resamples: int = 2000, seed: int = 0
) -> Results:
    """Join rows to labels and measure every detector.

    A row belongs to an image of its SHA-256; else to the image that it is the equalised copy of; else, where the row
    has no hash (its file could not be read, or another tool wrote it), to the image of its path. Abstentions
    (``inconclusive``) and errors are counted and in no metric; `DetectorResult.with_abstentions` shows what the
    abstentions hide. Rows scored by different versions of the core, or of equalised and of plain images, are
    different detectors.

    Args:
        data: The labelled images.
        rows: Of any number of detectors; those of images that the data set does not hold are passed over.
        by: What generated images are told apart by; ``source`` and ``kind`` pool generators of few images each.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        DatasetError: The set lacks a class, no row is of its images, one image has two scores, or one detector's
            rows were judged by several thresholds.
    """
    samples = data.samples
    labels = np.array([sample.generated for sample in samples], bool)
    if labels.all() or not labels.any():
        raise DatasetError(
            f"{data.place}: {int((~labels).sum())} real and {int(labels.sum())} generated images; metrics need both"
        )
    columns = _columns(samples, rows)
    if not columns:
        raise DatasetError(
            f"no prediction is of an image of {data.place}",
            hint="rows are joined by the images' sha256, or by path where a row has none",
        )
    names = _distinct_names(columns)
    groups = numbered([source_of(sample) for sample in samples])
    detectors = [
        _result(name, column, samples, labels, groups, by, resamples=resamples, seed=seed)
        for name, column in zip(names, columns, strict=True)
    ]
    return Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        core_version=__version__,
        git=git_state(),
        environment=environment(),
        by=by,
        seed=seed,
        resamples=resamples,
        data=Data(
            place=data.place,
            adapter=data.adapter,
            split=data.split,
            sha256=data.sha256,
            bad=[(bad.name, bad.cause) for bad in data.bad],
        ),
        images=Images(
            name=[data.name(sample) for sample in samples],
            sha256=[sample.sha256 for sample in samples],
            label=[sample.label for sample in samples],
            generator=[sample.generator for sample in samples],
            source=[sample.source for sample in samples],
            group=groups.tolist(),
        ),
        detectors=detectors,
    )


def _columns(samples: Sequence[Sample], rows: Iterable[Prediction]) -> list[_Column]:
    by_hash: dict[str, list[int]] = {}
    by_path: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_hash.setdefault(sample.sha256, []).append(index)
        by_path.setdefault(_absolute(sample.path), []).append(index)
    columns: dict[tuple[Key, bool], _Column] = {}
    failed: list[tuple[Key, int, str]] = []
    for row in rows:
        original = original_of(row.path)
        where = by_hash.get(original or row.sha256, [])
        if not where and not row.sha256:
            where = by_path.get(_absolute(row.path), [])
        if row.log_odds is None:
            failed += [(_key(row), index, row.error) for index in where]
            continue
        if not where:
            continue
        at = (_key(row), bool(original))
        column = columns.setdefault(at, _Column(*at, np.full(len(samples), np.nan), np.zeros(len(samples), bool)))
        for index in where:
            if np.isfinite(column.log_odds[index]) and abs(column.log_odds[index] - row.log_odds) > _TOLERANCE:
                raise DatasetError(f"{row.path}: two scores of one image by {_name(column.key)}")
            column.log_odds[index] = row.log_odds
            column.abstained[index] = row.label == "inconclusive"
        column.thresholds.add(0.0 if row.threshold is None else row.threshold)
        column.calibrated &= bool(row.calibrated)
    # Whether the image was equalised before it could not be scored, an error does not tell: it counts for both.
    for key, index, cause in failed:
        theirs = [column for column in columns.values() if column.key == key]
        if not theirs:
            theirs = [_Column(key, False, np.full(len(samples), np.nan), np.zeros(len(samples), bool))]
            columns[key, False] = theirs[0]
        for column in theirs:
            if not np.isfinite(column.log_odds[index]):
                column.errors[index] = cause
    for column in columns.values():
        if len(column.thresholds) > 1:
            several = ", ".join(f"{t:g}" for t in sorted(column.thresholds))
            raise DatasetError(f"{_name(column.key)}: rows judged by different thresholds ({several})")
    return list(columns.values())


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  links stay: an image is known by the name that it was given


def _distinct_names(columns: Sequence[_Column]) -> list[str]:
    """Names with as little added as tells them apart."""
    names = [_name(column.key) for column in columns]
    marks: list[Mapping[int, str]] = [
        {i: ("equalised" if c.equalised else "as found") for i, c in enumerate(columns)},
        {i: c.key[3] for i, c in enumerate(columns)},
        {i: c.key[2][:8] for i, c in enumerate(columns)},
    ]
    for mark in marks:
        for name in {name for name in names if names.count(name) > 1}:
            same = [i for i, other in enumerate(names) if other == name]
            if len({mark[i] for i in same}) > 1:
                for i in same:
                    names[i] = f"{name} ({mark[i]})"
    return names


def _result(
    name: str,
    column: _Column,
    samples: Sequence[Sample],
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    by: By,
    *,
    resamples: int,
    seed: int,
) -> DetectorResult:
    scores = column.log_odds
    there = np.isfinite(scores)
    scored = there & ~column.abstained
    threshold = next(iter(column.thresholds), 0.0)
    wanted = tuple(n for n in TITLES if column.calibrated or n not in PROBABILISTIC)

    def metrics(chosen: NDArray[np.bool_], names: Sequence[str] = wanted) -> dict[str, Metric]:
        if labels[chosen].all() or not labels[chosen].any():
            return {}
        return measure(
            labels[chosen],
            scores[chosen],
            threshold,
            names,
            groups=groups[chosen].tolist(),
            resamples=resamples,
            seed=seed,
        )

    best = oracle(labels[scored], scores[scored]) if metrics(scored, ("auroc",)) else None
    detector, weights, sha256, version = column.key
    return DetectorResult(
        name=name,
        detector=detector,
        weights=weights,
        weights_sha256=sha256,
        core_version=version,
        equalised=column.equalised,
        threshold=threshold,
        calibrated=column.calibrated,
        counts=Counts(
            real=int((~labels).sum()),
            generated=int(labels.sum()),
            scored_real=int((scored & ~labels).sum()),
            scored_generated=int((scored & labels).sum()),
            abstained_real=int((column.abstained & ~labels).sum()),
            abstained_generated=int((column.abstained & labels).sum()),
            errors=len(column.errors),
            missing=int((~there).sum()) - len(column.errors),
        ),
        metrics=metrics(scored),
        with_abstentions=metrics(there, ("auroc", "average_precision")) if column.abstained.any() else {},
        oracle={"threshold": best[0], "balanced_accuracy": best[1]} if best else {},
        generators=_generators(samples, labels, scored, column.abstained, metrics, by),
        sources=_sources(samples, labels, scored, metrics),
        log_odds=[float(score) if ok else None for score, ok in zip(scores, there, strict=True)],
        abstained=np.flatnonzero(column.abstained).tolist(),
        errors=sorted(column.errors.items()),
        note="" if labels[scored].any() and not labels[scored].all() else "no image of one class is scored",
    )


def _generators(
    samples: Sequence[Sample],
    labels: NDArray[np.bool_],
    scored: NDArray[np.bool_],
    abstained: NDArray[np.bool_],
    metrics: _Measure,
    by: By,
) -> list[Generator]:
    named = [getattr(sample, by) or sample.generator or sample.source or "unknown" for sample in samples]
    names = np.where(labels, np.array(named), "")
    sources = np.array([sample.source for sample in samples])
    found = []
    for name in sorted(set(names[labels])):
        ours = names == name
        own = ~labels & np.isin(sources, sources[ours]) & (sources != "")
        against = own if own.any() else ~labels
        chosen = scored & (ours | against)
        generated, real = int((chosen & ours).sum()), int((chosen & against).sum())
        found.append(
            Generator(
                name=str(name),
                generated=generated,
                real=real,
                against="own" if own.any() else "all",
                abstained=int((abstained & ours).sum()),
                few=min(generated, real) < FEW,
                metrics=metrics(chosen),
            )
        )
    # What too few images say comes last, however bad it looks; what none say, after that.
    return sorted(found, key=lambda g: (g.few, g.metrics["auroc"].value if g.metrics else 2.0, g.name))


def _sources(
    samples: Sequence[Sample], labels: NDArray[np.bool_], scored: NDArray[np.bool_], metrics: _Measure
) -> list[Source]:
    names = np.array([sample.source for sample in samples])
    found = []
    for name in sorted(set(names[~labels]) - {""}):
        ours = scored & ~labels & (names == name)
        share = metrics(ours | (scored & labels), ("real_accuracy",))
        if share:
            real = int(ours.sum())
            found.append(Source(name=str(name), real=real, few=real < FEW, real_accuracy=share["real_accuracy"]))
    return sorted(found, key=lambda source: (source.real_accuracy.value, source.name))
