"""The page's results as HTML. Whatever comes from a file, its name included, passes `html.escape`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from detector_zoo.app.answers import Agreement, Analysis, Exchanged, Launderings, Served, Verdict
from detector_zoo.app.facts import FileFacts
from detector_zoo.app.pictures import data_url, thumbnail

__all__ = [
    "agreement",
    "analysis",
    "exchanged",
    "export",
    "facts",
    "heat",
    "laundering",
    "perturbation",
    "problem",
    "verdicts",
]

SPAN = 6.0
"""The axis of log-odds reaches from -SPAN to SPAN; beyond them a bar ends in an arrow."""
_TELLING = ("names a generator", "C2PA credentials")
_STRONG = ' class="zoo-strong"'
OPERATIONS = {
    "jpeg": "JPEG, quality {}",
    "webp": "WebP, quality {}",
    "avif": "AVIF, quality {}",
    "resize_bicubic": "resized to {:.0%}",
    "resize_bilinear": "resized to {:.0%}",
    "resize_lanczos": "resized to {:.0%}",
    "blur": "blurred, sigma {} px",
}


def problem(message: str, hint: str | None = None) -> str:
    """A message instead of a result.

    Args:
        message: One line.
        hint: What to do about it.
    """
    more = f"<span>{escape(hint)}</span>" if hint else ""
    return f'<div class="zoo-problem" role="alert"><strong>{escape(message)}</strong>{more}</div>'


def analysis(found: Analysis, served: Iterable[Served], *, pasted: bool = False) -> str:
    """Agreement, every verdict, and what not to conclude.

    Args:
        found: What the detectors said.
        served: The detectors that are loaded, for what is to be known about each.
        pasted: Whether the picture came out of the clipboard.
    """
    note = (
        '<p class="zoo-note"><strong>Pasted pictures are new files.</strong> The browser decoded the picture and wrote '
        "it anew as PNG: its codec, its quality and its metadata are gone, and what they did to its pixels is not. "
        "Drop the original file where you can.</p>"
        if pasted
        else ""
    )
    # What is measured of one detector stands with its verdict; what all verdicts need, together and in sight.
    limits = {
        verdict.name: [line for line in found.do_not_conclude if line.startswith(f"{verdict.name} errs: ")]
        for verdict in found.verdicts
    }
    own = {line for lines in limits.values() for line in lines}
    general = [line for line in found.do_not_conclude if line not in own]
    return (
        '<section class="zoo-results" aria-live="polite">'
        f"<h2>{escape(found.name)}</h2>{note}{agreement(found.agreement)}{verdicts(found.verdicts, served, limits)}"
        f'<div class="zoo-caution"><h3>What not to conclude</h3>{_listed(general)}</div></section>'
    )


def agreement(counts: Agreement) -> str:
    """How many detectors say what, in words and as a bar."""
    total = counts.scored + counts.failed
    parts = [
        ("generated", counts.generated, "generated"),
        ("inconclusive", counts.inconclusive, "inconclusive"),
        ("real", counts.real, "real"),
        ("failed", counts.failed, "without a score"),
    ]
    told = [f"{number} {words}" for _, number, words in parts if number]
    if max(counts.generated, counts.real) == total:
        lead = f"{'All' if total > 1 else 'The'} {total if total > 1 else 'one'} detector{_s(total)} agree{_es(total)}"
    else:
        lead = f"{total} detector{_s(total)} asked"
    bar = "".join(
        f'<span class="zoo-{kind}" style="flex-grow:{number}">{number} <i>{words}</i></span>'
        for kind, number, words in parts
        if number
    )
    words = f"{lead}: {', '.join(told)}"
    return (
        f'<p class="zoo-lead">{escape(words)}.</p>'
        f'<div class="zoo-agreement" role="img" aria-label="{escape(words)}">{bar}</div>'
    )


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _es(number: int) -> str:
    return "s" if number == 1 else ""


def verdicts(found: Sequence[Verdict], served: Iterable[Served], limits: Mapping[str, Sequence[str]]) -> str:
    """One row a detector: label, place on the axis of log-odds, numbers, and how far to believe them.

    Args:
        found: What the detectors said.
        served: The detectors that are loaded.
        limits: Sentences by detector.
    """
    known = {detector.name: detector for detector in served}
    rows = "".join(_verdict(verdict, known[verdict.name], limits[verdict.name]) for verdict in found)
    return (
        f'<ul class="zoo-verdicts">{rows}</ul>'
        '<p class="zoo-scale" aria-hidden="true"><span>← real</span><span>log-odds from '
        f"{-SPAN:+.0f} to {SPAN:+.0f}, line: threshold, hatched: inconclusive</span><span>generated →</span></p>"
    )


def _verdict(verdict: Verdict, served: Served, limits: Sequence[str]) -> str:
    kind = verdict.label or "failed"
    if verdict.error:
        shown = f'<p class="zoo-numbers">{escape(verdict.error)}</p>'
    else:
        shown = f'{_axis(verdict, served.inconclusive)}<p class="zoo-numbers">{_numbers(verdict)}</p>'
    lines = [served.summary, verdict.note, *limits, served.trained_on and f"It learnt from: {served.trained_on}"]
    return (
        f'<li class="zoo-verdict zoo-{kind}" data-detector="{escape(verdict.name)}"><div class="zoo-head">'
        f'<span class="zoo-name">{escape(verdict.name)}</span>'
        f'<span class="zoo-label">{verdict.label or "no score"}</span></div>{shown}'
        f"<details><summary>How far to believe it</summary>{_listed(filter(None, lines))}"
        "</details></li>"
    )


def _numbers(verdict: Verdict) -> str:
    assert verdict.log_odds is not None and verdict.probability is not None  # noqa: S101, PT018 (a scored verdict)
    if verdict.calibrated:
        state = '<span class="zoo-calibrated">calibrated</span>'
    else:
        state = (
            '<span class="zoo-uncalibrated">uncalibrated: it puts pictures in an order, '
            "and its probability is not one</span>"
        )
    return (
        f'log-odds <data class="zoo-log-odds" value="{verdict.log_odds!r}">{verdict.log_odds:+.2f}</data>, '
        f'probability <data class="zoo-probability" value="{verdict.probability!r}">{verdict.probability:.3f}</data>, '
        f"threshold {verdict.threshold:+.2f}; {state}"
    )


def _axis(verdict: Verdict, inconclusive: float) -> str:
    assert verdict.log_odds is not None and verdict.threshold is not None  # noqa: S101, PT018 (a scored verdict)
    value, threshold = _place(verdict.log_odds), _place(verdict.threshold)
    low, high = _place(verdict.threshold - inconclusive), _place(verdict.threshold + inconclusive)
    left, width = min(value, threshold), abs(value - threshold)
    beyond = " zoo-beyond" if abs(verdict.log_odds) > SPAN else ""
    band = f'<span class="zoo-band" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>' if inconclusive else ""
    words = f"log-odds {verdict.log_odds:+.2f}, threshold {verdict.threshold:+.2f}: {verdict.label}"
    return (
        f'<div class="zoo-axis{beyond}" role="img" aria-label="{escape(words)}">{band}'
        f'<span class="zoo-bar" style="left:{left:.2f}%;width:{width:.2f}%"></span>'
        f'<span class="zoo-threshold" style="left:{threshold:.2f}%"></span>'
        f'<span class="zoo-dot" style="left:{value:.2f}%"></span></div>'
    )


def _place(log_odds: float) -> float:
    """Where log-odds lie on the axis, per cent of its width."""
    return 50 * (1 + max(-SPAN, min(SPAN, log_odds)) / SPAN)


def perturbation(name: str) -> str:
    """A perturbation in words: ``jpeg:75`` is "JPEG, quality 75"."""
    kind, _, number = name.partition(":")
    words = OPERATIONS.get(kind)
    if words is None or not number:
        return name
    return words.format(float(number)) if "%" in words else words.format(number)


def laundering(found: Launderings) -> str:
    """A row a perturbation, a column a detector would be too wide for a phone: so a list a detector."""
    by_detector: dict[str, list[Any]] = {}
    for row in found.rows:
        by_detector.setdefault(row.before.name, []).append(row)
    decided = [row for row in found.rows if row.survives is not None]
    kept = sum(bool(row.survives) for row in decided)
    lead = (
        f"{kept} of {len(decided)} verdicts survive."
        if decided
        else "There is no verdict to survive: nothing was said."
    )
    body = "".join(_survivals(name, rows) for name, rows in by_detector.items())
    return f'<section class="zoo-laundering" aria-live="polite"><p class="zoo-lead">{lead}</p>{body}</section>'


def _survivals(name: str, rows: Sequence[Any]) -> str:
    lines = []
    for row in rows:
        after = row.after
        if not after.label:
            kind, said = "undecided", "no score"
        elif row.survives is None:
            kind, said = "undecided", "as before" if after.label == row.before.label else f"now {after.label}"
        else:
            kind, said = ("kept", "survives") if row.survives else ("lost", f"becomes {after.label}")
        score = "" if after.log_odds is None else f"{after.log_odds:+.2f}"
        lines.append(
            f"<tr class=zoo-{kind}><th scope=row>{escape(perturbation(row.perturbation))}</th>"
            f"<td>{score}</td><td>{said}</td></tr>"
        )
    before = rows[0].before
    now = "no score" if before.log_odds is None else f"{before.label}, log-odds {before.log_odds:+.2f}"
    return (
        f"<table><caption><span class=zoo-name>{escape(name)}</span> as it is: {escape(now)}</caption>"
        f"<thead><tr><th scope=col>after</th><th scope=col>log-odds</th><th scope=col>verdict</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def heat(base: str, top: str, detector: str) -> str:
    """Two layers; the page's slider says how much of the upper one is seen.

    Args:
        base: The picture, a data URL.
        top: The heatmap, a data URL.
        detector: Whose.
    """
    said = f"Heatmap of {escape(detector)} over the picture"
    return (
        f'<figure class="zoo-heat"><div class="zoo-layers"><img src="{base}" alt="The picture">'
        f'<img class="zoo-top" src="{top}" alt="{said}"></div><figcaption>{said}</figcaption></figure>'
    )


def exchanged(found: Exchanged) -> str:
    """The exchanged picture, and the three pictures' verdicts side by side."""
    picture = thumbnail(found.image)
    rows = []
    for before, edit, after in zip(found.original, found.edited, found.exchanged, strict=True):
        cells = "".join(
            f'<td class="zoo-cell zoo-{verdict.label or "failed"}">'
            + (f"{verdict.log_odds:+.2f}<br>{verdict.label}" if verdict.log_odds is not None else "no score")
            + "</td>"
            for verdict in (before, edit, after)
        )
        rows.append(f"<tr><th scope=row>{escape(before.name)}</th>{cells}</tr>")
    return (
        '<section class="zoo-exchanged" aria-live="polite">'
        f'<figure><img src="{picture}" alt="The edit inside the mask, the original everywhere else"><figcaption>The '
        "edit inside the mask, the original's own pixels everywhere else. "
        f"The mask covers {found.share:.1%} of the picture; outside it the edit had changed {found.outside:.1%} of the "
        f"pixels, and those are undone.</figcaption></figure>"
        "<div><table><caption>Log-odds and verdict</caption><thead><tr><th scope=col>detector</th>"
        "<th scope=col>original</th><th scope=col>edit</th><th scope=col>exchanged</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{_listed(found.notes)}"
        "<p>A detector that calls the edit generated and the exchanged picture real has looked at what the generator "
        "did to all the pixels, not at the edit.</p></div></section>"
    )


def facts(found: FileFacts) -> str:
    """What the file tells without a detector, C2PA credentials included."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd{_STRONG if name in _TELLING else ''}>{escape(value)}</dd>"
        for name, value in found.rows()
    )
    return (
        '<p class="zoo-about">All of this was written by whoever made the file, and anybody can change it: it is '
        f'context for the verdicts, not evidence.</p><dl class="zoo-facts">{rows}</dl>'
    )


def export(found: Analysis, extra: Mapping[str, Any]) -> str:
    """A link that saves the result as JSON, made here: the page asks nobody for it.

    Args:
        found: The analysis.
        extra: Further keys of the JSON object.
    """
    text = json.dumps({**found.to_dict(), **extra}, indent=1, ensure_ascii=False, allow_nan=False)
    stem = re.sub(r"[^\w-]+", "_", found.name.rsplit(".", 1)[0])[:60] or "picture"
    url = data_url(text.encode("utf-8"), "application/json")
    return f'<a class="zoo-button" id="zoo-export" download="{escape(stem)}.zoo.json" href="{url}">Save as JSON</a>'


def _listed(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""
