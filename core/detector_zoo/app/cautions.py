"""What a reader must not conclude from the verdicts: sentences from what is known of the file and of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector_zoo.app.answers import Verdict
    from detector_zoo.app.facts import FileFacts
    from detector_zoo.loading import LoadedDetector
    from detector_zoo.weight_specs import Result, WeightSpec

__all__ = ["write"]

LOW_QUALITY = 75
"""JPEG quality below which a sentence says so: what the catalogue's figures after re-encoding stop at."""


def write(facts: FileFacts, judged: Sequence[tuple[LoadedDetector, Verdict]]) -> tuple[str, ...]:
    """One sentence each, the general ones first.

    Args:
        facts: Of the file.
        judged: Detectors and their verdicts on it.
    """
    scored = [(detector, verdict) for detector, verdict in judged if not verdict.error]
    return tuple(dict.fromkeys([*_general(facts, scored), *_of_the_file(facts, scored), *_of_the_weights(scored)]))


def _general(facts: FileFacts, scored: Sequence[tuple[LoadedDetector, Verdict]]) -> Iterator[str]:
    yield "A score is a signal, not proof: do not accuse anybody on it."
    labels = {verdict.label for _, verdict in scored} - {"inconclusive"}
    if len(labels) > 1:
        yield "The detectors disagree. Their errors are not independent, so a majority is not a proof either."
    if scored and not labels:
        yield "No detector decides. Inconclusive means that the picture may be either, not that it is half generated."
    if "real" in labels:
        yield "“Real” means that a detector found no trace that it knows, not that the picture shows what happened."
    if facts.credentials.state in ("absent", "not looked for"):
        yield "Missing C2PA credentials and missing metadata show nothing: most sites strip both."
    elif facts.credentials.state == "valid":
        yield "Valid credentials show that the file is as its signer left it; who that is was not checked."
        if facts.credentials.says_generated:
            yield "Its signer says that a machine made the picture or parts of it; that says more than any score."
    if facts.generators:
        yield "The metadata names a program that generates pictures; anybody can write that, but few have a reason to."
    if facts.exif:
        yield "EXIF can be written by anybody, and survives editing: a camera's name does not make a photograph."


def _of_the_file(facts: FileFacts, scored: Sequence[tuple[LoadedDetector, Verdict]]) -> Iterator[str]:
    shorter = min(facts.width, facts.height)
    small = [
        f"{verdict.name} ({side} px)" for detector, verdict in scored if (side := _input_side(detector.spec)) > shorter
    ]
    if small:
        yield (
            f"The picture is small: its shorter side has {shorter} pixels, less than the input of {', '.join(small)}, "
            "so part of what they look at is filled in."
        )
    if facts.quality is not None and facts.quality < LOW_QUALITY:
        yield (
            f"JPEG quality is about {facts.quality}: strong compression removes traces, and no figure here was "
            f"measured below {LOW_QUALITY}."
        )
    if facts.orientation != 1:
        yield "The picture is stored turned; some detectors take it upright, others as stored, as their authors did."


def _of_the_weights(scored: Sequence[tuple[LoadedDetector, Verdict]]) -> Iterator[str]:
    for detector, verdict in scored:
        if detector.info.control:
            yield f"{verdict.name} is not a detector: it exists to test pipelines, and its verdict means nothing."
            continue
        if not verdict.calibrated:
            yield f"{verdict.name} is not calibrated: its log-odds rank pictures, and its probability is not one."
        yield _errs(verdict.name, [r for r in detector.spec.reproduced if r.metric == "AUROC"] if detector.spec else [])


def _errs(name: str, results: Sequence[Result]) -> str:
    """How often a detector errs, as far as it was measured in this project; the first figure is the main one."""
    if not results:
        return f"{name} has no figure that was measured here: how often it errs is not known."
    parts = [f"{_figure(results[0])} on {results[0].data}{_chance(results[0])}"]
    for result in results[1:]:
        if result.data.endswith("then JPEG 75"):
            parts.append(f"{_figure(result)} after JPEG 75")
        elif result.data.startswith("local edits, against"):
            parts.append(
                f"{_figure(result)} for local edits, so an edited photograph can pass as real{_chance(result)}"
            )
    return f"{name} errs: AUROC {'; '.join(parts)}."


def _figure(result: Result) -> str:
    interval = f" [{result.interval[0]:.2f}, {result.interval[1]:.2f}]" if result.interval else ""
    return f"{result.value:.2f}{interval}" + (f" ({result.count})" if result.count else "")


def _chance(result: Result) -> str:
    return " (no better than guessing, 0.5)" if result.interval and result.interval[0] <= 0.5 else ""


def _input_side(spec: WeightSpec | None) -> int:
    """Pixels of the square that a detector cuts out or resizes to; 0 where it takes what of the picture there is."""
    if spec is None or spec.preprocessing.get("multiple"):
        return 0
    sides = [spec.preprocessing.get(key) for key in ("crop", "resize")]
    return max((side for side in sides if isinstance(side, int)), default=0)
