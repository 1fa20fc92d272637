"""The report: one HTML page that needs nothing outside itself, with results.json, results.csv and results.md beside it.

No script is in it. Every text that comes from a data set is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from detector_zoo import heatmaps, images
from detector_zoo.detector import Localizer
from detector_zoo.errors import DatasetError, ImageError, PluginError, ZooError
from detector_zoo.evaluation import plots
from detector_zoo.evaluation.datasets import DataSet
from detector_zoo.evaluation.equalised import copy_of
from detector_zoo.evaluation.intervals import Metric
from detector_zoo.evaluation.metrics import TITLES
from detector_zoo.evaluation.results import DetectorResult, Results, read, write_text
from detector_zoo.loading import LoadedDetector
from detector_zoo.sources import printable

__all__ = ["leaderboard", "render", "require", "write_report"]

WORST = 10
THUMBNAIL = 240
"""Longest side in pixels."""

_OVERVIEW = (
    "auroc",
    "average_precision",
    "tpr_at_fpr_1",
    "tpr_at_fpr_5",
    "balanced_accuracy",
    "real_accuracy",
    "generated_accuracy",
)


@dataclass(frozen=True, slots=True)
class _Wrong:
    """One error of a detector, as the page shows it."""

    name: str
    label: str
    generator: str
    log_odds: float
    picture: str
    heatmap: str


def require() -> None:
    """Check that the report's libraries are there.

    Raises:
        ZooError: One is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ZooError("reports need jinja2 and matplotlib", hint="pip install 'detector-zoo[report]'") from error


def write_report(
    results: Results,
    folder: Path,
    *,
    data: DataSet | None = None,
    detectors: Sequence[LoadedDetector] = (),
    audits: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write index.html, results.json, results.csv and results.md.

    Args:
        results: What was measured.
        folder: Made if it is not there.
        data: For the worst errors' pictures; the set that the results are of.
        detectors: For their heatmaps, as far as these can localize.
        audits: Files of ``zoo audit -o``.

    Returns:
        The page.

    Raises:
        DatasetError: An audit is none, or the folder cannot be written.
        ZooError: The report's libraries are not installed.
    """
    page = render(results, data=data, detectors=detectors, audits=[read_audit(path) for path in audits])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written ({error.strerror})") from error
    write_text(folder / "results.json", results.to_json())
    write_text(folder / "results.csv", results.to_csv())
    write_text(folder / "results.md", results.to_markdown())
    write_text(folder / "index.html", page)
    return folder / "index.html"


def read_audit(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON of an audit.

    Raises:
        DatasetError: The file is none.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{printable(str(path))}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict) or "audit" not in values:
        raise DatasetError(f"{printable(str(path))}: not the results of zoo audit")
    return values


def render(
    results: Results,
    *,
    data: DataSet | None = None,
    detectors: Sequence[LoadedDetector] = (),
    audits: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page's HTML; arguments as of `write_report`, audits as their JSON."""
    require()
    loaded = {detector.name: detector for detector in detectors}
    measured = [one for one in results.detectors if one.metrics]
    sections = []
    for one in results.detectors:
        figures = []
        if one.metrics:
            figures.append(plots.forest(one, results.by))
            if "ece" in one.metrics:
                figures.append(plots.reliability_diagram(results, one))
        wrong = list(_worst(one, results, data, loaded.get(_plain_name(one)))) if data else []
        sections.append({"result": one, "figures": figures, "wrong": wrong, "metrics": _all_metrics(one)})
    page: str = _template("report.html.j2").render(
        results=results,
        notes=_notes(results),
        columns=[TITLES[name] for name in _OVERVIEW],
        overview=[(one, [one.metrics[name] for name in _OVERVIEW]) for one in measured],
        curves=[plots.roc(results), plots.det(results)] if measured else [],
        sections=sections,
        audits=[
            {
                "name": audit["audit"],
                "detector": audit.get("origin", {}).get("detector", ""),
                "tables": list(_tables_of(audit)),
                "figures": plots.laundering(audit) if audit["audit"] == "laundering" else [],
            }
            for audit in audits
        ],
    )
    return page


def leaderboard(files: Sequence[str | os.PathLike[str]]) -> str:
    """A page of many results, a table for each data set: only what was measured on the same images is comparable.

    Raises:
        DatasetError: A file is no result.
    """
    boards: dict[str, dict[str, Any]] = {}
    for file in files:
        results = read(file)
        board = boards.setdefault(results.data.sha256, {"results": results, "rows": {}})
        for one in results.detectors:
            if one.metrics:
                # The latest of what was measured twice.
                key = (one.name, one.weights_sha256, one.core_version, one.equalised)
                known = board["rows"].get(key)
                if known is None or known[1].created < results.created:
                    board["rows"][key] = (one, results)
    for board in boards.values():
        board["rows"] = sorted(board["rows"].values(), key=lambda row: -row[0].metrics["auroc"].value)
    page: str = _template("leaderboard.html.j2").render(boards=list(boards.values()), titles=TITLES)
    return page


def _template(name: str) -> Any:
    require()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("detector_zoo.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = lambda value: f"{value:+.2f}"
    return environment.get_template(name)


def _plain_name(one: DetectorResult) -> str:
    return f"{one.detector}.{one.weights}" if one.weights else one.detector


def _all_metrics(one: DetectorResult) -> list[tuple[str, Metric]]:
    return [(TITLES[name], metric) for name, metric in one.metrics.items()]


def _notes(results: Results) -> Iterator[str]:
    """What a reader must know before believing a figure."""
    for one in results.detectors:
        counts = one.counts
        if not one.equalised:
            yield (
                f"{one.name}: images were scored as they are. Where the classes differ in format, part of a figure may "
                "be the format's: see zoo audit format."
            )
        if one.abstained:
            yield (
                f"{one.name} abstains on images: {counts.abstained_real} real, {counts.abstained_generated} generated. "
                "They are in no figure but the one that ranks them too: AUROC "
                f"{one.with_abstentions.get('auroc', 'not defined')}."
            )
        if counts.mark:
            scored = f"{counts.scored_real} real and {counts.scored_generated} generated images"
            yield f"{one.name}: {scored} are too few for the intervals to be believed."
        if counts.errors or counts.missing:
            yield f"{one.name}: images with an error: {counts.errors}; without a prediction: {counts.missing}."
        if not one.calibrated:
            yield f"{one.name} is not calibrated: its scores rank images, and their size means nothing."
        if one.note:
            yield f"{one.name}: {one.note}."
    if results.data.bad:
        yield f"Images of the set that cannot be used and are left out: {len(results.data.bad)}."


def _worst(one: DetectorResult, results: Results, data: DataSet, detector: LoadedDetector | None) -> Iterator[_Wrong]:
    """The images furthest on the wrong side of the threshold."""
    abstained = set(one.abstained)
    wrong = []
    for index, score in enumerate(one.log_odds):
        if score is None or index in abstained:
            continue
        margin = score - one.threshold
        over = -margin if data.samples[index].generated else margin
        # At the threshold itself an image is called real.
        if over > 0 or (over == 0 and data.samples[index].generated):
            wrong.append((over, index))
    for _, index in sorted(wrong, key=lambda pair: (-pair[0], pair[1]))[:WORST]:
        score = one.log_odds[index]
        assert score is not None  # noqa: S101 (chosen above)
        picture, heat = _pictures(data.samples[index], one.equalised, detector)
        yield _Wrong(
            name=printable(results.images.name[index]),
            label=results.images.label[index],
            generator=results.images.generator[index] or results.images.source[index],
            log_odds=score,
            picture=picture,
            heatmap=heat,
        )


def _pictures(sample: Any, equalised: bool, detector: LoadedDetector | None) -> tuple[str, str]:
    """A thumbnail of what was scored and of its heatmap; "" for what cannot be had."""
    try:
        decoded = images.decode(copy_of(sample) if equalised else sample.path)
    except ImageError:
        return "", ""
    upright = decoded.oriented(detector.orientation_policy if detector else "apply")
    heat = ""
    if detector and isinstance(detector.detector, Localizer):
        try:
            heat = _thumbnail(heatmaps.overlay(upright, detector.map_of(upright)))
        except PluginError:
            heat = ""
    return _thumbnail(upright), heat


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _tables_of(audit: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Every figure of an audit's JSON: title, head and rows. Lists of points are tables, the rest is one more."""
    single: list[list[str]] = []
    for name, value in audit.items():
        if name in ("origin", "audit", "schema_version"):
            continue
        title = name.replace("_", " ")
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            columns = [column for column, cell in value[0].items() if _is_metric(cell)]
            words = [column for column, cell in value[0].items() if isinstance(cell, str)][:1]
            rows = [[*(str(one[word]) for word in words), *(_text(one[column]) for column in columns)] for one in value]
            yield title, [*words, *(column.replace("_", " ") for column in columns)], rows
        else:
            single += _figures(value, title)
    if single:
        yield "figures", ["figure", "value"], single


def _figures(value: Any, name: str) -> Iterator[list[str]]:
    if _is_metric(value):
        yield [name, _text(value)]
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _figures(item, f"{name}: {str(key).replace('_', ' ')}")


def _is_metric(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"value", "low", "high"}


def _text(metric: Mapping[str, float | None]) -> str:
    """A metric for people; one that is not defined has no numbers."""
    parts = [part for part in metric.values() if part is not None]
    return str(Metric(*parts)) if len(parts) == 3 else "-"
