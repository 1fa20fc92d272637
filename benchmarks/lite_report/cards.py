"""The report as Markdown, its blocks in the models' cards, and its figures as entries of registry.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from detector_zoo.evaluation.metrics import TITLES
from detector_zoo.plugins import list_detectors

from .figures import ALL, NAMES

START = "<!-- lite-report: made by make lite-report, do not edit -->"
END = "<!-- lite-report: end -->"
COMMAND = "make lite-report DATA=../shared/data"
FUSION = "fusion"
CURVES = "images/lite-curves.svg"
"""Beside the page, drawn by `curves.draw`."""

CONDITIONS = {
    "none": "equalised",
    "jpeg:75": "then JPEG 75",
    "webp:75": "then WebP 75",
    "resize_bicubic:0.5": "then resize 0.5",
    "blur:1": "then blur 1",
}
"""What is done to the pictures of val, and how it is called."""

Report = Mapping[str, Any]


def show(value: Sequence[float | None] | None) -> str:
    """One figure with its interval."""
    if value is None or value[0] is None:
        return "-"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(report: Report, one: Report) -> str:
    """What a card says of a detector; ``one`` is of ``report["detectors"]``."""
    return "\n\n".join(_parts(report, one))


def _parts(report: Report, one: Report) -> Iterator[str]:
    data, metrics = report["data"], [TITLES[name] for name in NAMES]
    plain = one["conditions"]["none"]
    yield f"### `{one['name']}` on `{data['split']}`, formats equalised"
    yield (
        f"{plain[ALL]['real']} photographs and {plain[ALL]['generated']} generated images"
        f"{_left_out(one['errors'])}; 95 % bootstrap intervals, {report['resamples']} resamples. Abstentions are "
        f"ranked like every other score. From `{COMMAND}` (`docs/lite-report.json`)."
    )
    yield table(
        ["all generated images", *metrics],
        [[CONDITIONS[c], *(show(found[ALL].get(m)) for m in NAMES)] for c, found in one["conditions"].items()],
    )
    names = [name for name in plain if name != ALL]
    yield table(
        ["equalised, by family", "images", *metrics],
        [[_family(n, plain[n]), str(plain[n]["generated"]), *(show(plain[n].get(m)) for m in NAMES)] for n in names],
    )
    laundered = [c for c in one["conditions"] if c != "none"]
    if laundered:
        yield table(
            ["AUROC by family", *(CONDITIONS[c] for c in laundered)],
            [[_family(n, plain[n]), *(show(one["conditions"][c][n].get("auroc")) for c in laundered)] for n in names],
        )
    made = [(n, f) for place in ("pairs", "edits") for n, f in one.get(place, {}).items()]
    if made:
        yield "Against the photographs that they were made from, equalised and cut alike:"
        rows = [[n, str(f["images"]), show(f["auroc"]), show(f["in_order"])] for n, f in made]
        yield table(["images", "number", "AUROC", "pairs in order"], rows)
        if any("splice" in name for name, _ in made):
            yield (
                "Splices hold another real photograph's pixels in the same masks: a detector that finds them as well "
                "as the edits finds seams, not generated content."
            )
    if one.get("localization"):
        head = ["heatmap against mask", "images", "mIoU", "energy inside", "area inside", "pixel AUROC"]
        keys = ("miou", "energy", "area", "auroc")
        rows = [[n, str(f["images"]), *(show(f[k]) for k in keys)] for n, f in one["localization"].items()]
        yield table(head, rows)
    yield _fails(one)
    yield from _cost(one)


def _left_out(errors: int) -> str:
    return f" ({errors} scores failed and are in no figure)" if errors else ""


def _family(name: str, found: Report) -> str:
    return f"{name} (few)" if found["few"] else name


def _fails(one: Report) -> str:
    if not one["fails"]:
        return "Every interval of an AUROC above, equalised and splices apart, lies above 0.5."
    return f"Not shown to be better than chance (interval of the AUROC reaches 0.5): {', '.join(one['fails'])}."


def _cost(one: Report) -> Iterator[str]:
    if one["name"] == FUSION:
        return
    size = f"{one['bytes'] / 1e6:.2f} MB" if one["bytes"] else "no weights"
    yield (
        f"Cost: {size}; {one['images_per_second']:.3g} images a second of one CPU core, decoding included "
        f"({one['timed_on']})."
    )
    learnt = one["training"]
    if learnt is None:
        yield f"Training data: {one['trained_on'] or 'unknown'}. Training time: not recorded by `zoo train`."
    else:
        fit = learnt["slices"]["fit"]
        yield (
            f"Training: {_time(learnt['seconds'])} on {learnt['machine']}, recipe `{learnt['recipe']}`, "
            f"{learnt['data']}; learnt from {fit['real']} photographs and {fit['generated']} generated images, "
            f"sha256 of the list of files `{learnt['data_sha256'][:16]}`."
        )
        if one.get("curve", {}).get("auroc"):
            yield _curve(one["curve"], learnt["steps"]["kept"])


def _time(seconds: float) -> str:
    """Of the steps alone: frozen networks' features are computed before them."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds of steps"


def _curve(curve: Report, kept: int) -> str:
    """The learning curve in a line, of five steps that were validated at most, the one that was kept among them."""
    steps = [step for step, _ in curve["auroc"]]
    shown = {steps[round(i * (len(steps) - 1) / 3)] for i in range(4)} | {kept}
    said = ", ".join(f"{value:.3f} after {step} steps" for step, value in curve["auroc"] if step in shown)
    losses = [value for _, value in curve["loss"]]
    trend = f"; the loss on what is learnt went from {losses[0]:.3g} to {losses[-1]:.3g}" if len(losses) > 1 else ""
    return (
        f"Learning curve: AUROC on the validation slice (train, whose photographs the network does not see, of the "
        f"same collections) {said}{trend}."
    )


def page(report: Report) -> str:
    """The whole report: all detectors side by side, the fusion, then each one's block."""
    parts = ["# The `lite` weights, measured", "<!-- Made by make lite-report from lite-report.json, do not edit. -->"]
    names = [one["name"] for one in report["detectors"]]
    rows = [
        [f"`{o['name']}`", *(show(o["conditions"]["none"][ALL].get(m)) for m in NAMES)] for o in report["detectors"]
    ]
    parts.append(table(["detector", *(TITLES[m] for m in NAMES)], rows))
    by_row: dict[str, dict[str, str]] = {}
    for one in report["detectors"]:
        for condition, found in one["conditions"].items():
            for family, f in found.items():
                if (condition == "none") != (family == ALL):
                    name = CONDITIONS[condition] if family == ALL else _family(family, f)
                    by_row.setdefault(name, {})[one["name"]] = show(f.get("auroc"))
        for place in ("pairs", "edits"):
            for name, f in one.get(place, {}).items():
                by_row.setdefault(name, {})[one["name"]] = show(f["auroc"])
    wide = [[name, *(cells.get(n, "-") for n in names)] for name, cells in by_row.items()]
    parts.append("AUROC, equalised where nothing else is said:")
    parts.append(table(["images", *names], wide))
    if any(one.get("curve") for one in report["detectors"]):
        parts.append(
            "How they learnt: the loss on what is learnt, and AUROC on the validation slice, which is cut by "
            "photograph but shares its collections with what is learnt; `val` does not."
        )
        parts.append(f"![Loss and AUROC on the validation slice against steps, a panel a method]({CURVES})")
    if report.get("fusion"):
        fusion, best = report["fusion"], report["best_single"]
        parts += [
            "## The fusion",
            f"Log-odds weighed by a logistic regression with weights of at least 0 and l2 = {fusion['l2']:g}, fitted "
            f"on {fusion['fitted_on']}.",
            table(
                ["detector", "weight", *(f"AUROC on {place}" for place in report["slice"]["sets"])],
                [
                    [f"`{n}`", f"{w:.3f}", *(f"{a:.3f}" for a in report["slice"]["auroc"][n].values())]
                    for n, w in zip(fusion["detectors"], fusion["weights"], strict=True)
                ],
            ),
            f"Offset {fusion['offset']:.3f}. The best single detector by the mean of these AUROCs, so without a look "
            f"at `{report['data']['split']}`: `{best}`.",
        ]
    parts += [f"## {one['name']}\n\n{block(report, one)}" for one in report["detectors"]]
    return "\n\n".join(parts) + "\n"


def cards() -> dict[str, Path]:
    """Every installed method's card."""
    return {info.name: info.card for info in list_detectors() if info.card is not None}


def with_block(card: str, text: str | None) -> str:
    """A card with its block replaced, put below the heading of its results where it has none, or taken out (None)."""
    before, start, rest = card.partition(START)
    if start:
        after = rest.partition(END)[2]
        return before + (f"{START}\n{text}\n{END}" if text is not None else "") + after
    if text is None:
        return card
    heading = "## Results\n"
    if heading not in card:
        raise ValueError("the card has no heading '## Results'")
    return card.replace(heading, f"{heading}{START}\n{text}\n{END}\n\n", 1)


def written(report: Report | None, found: Mapping[str, Path]) -> dict[Path, str]:
    """What each card should hold; without a report, or a detector of the method in it, no block."""
    texts: dict[str, list[str]] = {}
    for one in report["detectors"] if report else ():
        texts.setdefault(one["name"].partition(".")[0], []).append(block(report or {}, one))
    return {
        path: with_block(path.read_text("utf-8"), "\n\n".join(texts[name]) if name in texts else None)
        for name, path in found.items()
    }


def registry(report: Report) -> str:
    """The field ``reproduced`` of every detector's entry, YAML."""
    out = {}
    for one in report["detectors"]:
        rows: list[dict[str, Any]] = []
        for condition, found in one["conditions"].items():
            for family, f in found.items():
                wanted = NAMES if family == ALL else ("auroc",)
                where = f"{report['data']['split']} split, formats equalised"
                where += "" if condition == "none" else f", {CONDITIONS[condition]}"
                where += "" if family == ALL else f": {family}"
                count = f"{f['real']} real, {f['generated']} generated"
                rows += [_result(where, TITLES[m], f[m], count) for m in wanted if m in f]
        for place in ("pairs", "edits"):
            for name, f in one.get(place, {}).items():
                rows.append(_result(f"{name}, against their photographs", "AUROC", f["auroc"], f"{f['images']} made"))
        for name, f in one.get("localization", {}).items():
            rows.append(_result(f"heatmap against mask: {name}", "mIoU", f["miou"], f"{f['images']} edits"))
            rows.append(_result(f"heatmap against mask: {name}", "energy inside", f["energy"], f"{f['images']} edits"))
        out[one["name"]] = {"reproduced": [row for row in rows if row["value"] is not None]}
    return yaml.safe_dump(out, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None)


def _result(data: str, metric: str, value: Sequence[float | None], count: str) -> dict[str, Any]:
    first, low, high = (None if x is None else round(x, 3) for x in value)
    return {"data": data, "metric": metric, "value": first, "interval": [low, high], "count": count, "command": COMMAND}
