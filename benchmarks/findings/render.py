"""From `docs/findings.json` to the page: nothing in it comes from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LETTERS", "page"]

LETTERS = ("a", "b", "c", "d", "e")

_HEAD = """# The papers' claims, tested at our scale

What holds here of what the papers claim, on networks small enough to train on two CPU cores within minutes, and a few
hundred images. These are tests of the ideas, not of the published detectors: a claim that does not show here may hold
at the papers' scale, and one that holds here was not tested there.

Written by `{command}`. All figures, with what was trained and on what, are in
[findings.json](findings.json).

**The rule.** Each claim is put as one or more differences that it says are above 0. Both sides are measured on the
same images, and the difference has a 95 % interval by a bootstrap that draws photographs together with everything
that was made of them, classes apart. *Holds*: the interval lies above 0. *Reversed*: below 0. *Not shown*: it contains
0. Intervals are of the images; how another training would come out they do not tell, beyond the seeds that are
averaged. {tests} differences are tested and none is corrected for that: one in forty comes out on each side by chance.

"""


def page(found: Mapping[str, Any]) -> str:
    """The page, Markdown.

    Args:
        found: The JSON document: ``command`` and, by letter, ``claims``.
    """
    claims = found["claims"]
    total = sum(len(claim["tests"]) for claim in claims.values())
    parts = [_HEAD.format(command=found["command"], tests=total), _summary(claims)]
    parts += [_claim(letter, claims[letter]) for letter in LETTERS if letter in claims]
    missing = [letter for letter in LETTERS if letter not in claims]
    if missing:
        parts.append(f"Not measured yet: {', '.join(f'({letter})' for letter in missing)}.\n")
    return "".join(parts).rstrip("\n") + "\n"


def _summary(claims: Mapping[str, Any]) -> str:
    rows = [
        [f"({letter}) {claims[letter]['title']}", test["what"], test["difference"], f"**{test['verdict']}**"]
        for letter in LETTERS
        if letter in claims
        for test in claims[letter]["tests"]
    ]
    for one, before in reversed(list(zip(rows[1:], rows, strict=False))):
        if one[0] == before[0]:
            one[0] = ""
    return "## Summary\n\n" + _table(["claim", "difference", "value, 95 % interval", "here"], rows)


def _claim(letter: str, claim: Mapping[str, Any]) -> str:
    lines = [f"## ({letter}) {claim['title']}\n", f"{claim['claim']}\n", *(f"{text}\n" for text in claim["setting"])]
    counted = [f"{name}: {_words(classes)}" for name, classes in claim["counts"].items()]
    lines.append(f"Images: {'; '.join(counted)}.\n")
    for table in claim["tables"]:
        lines.append(f"**{table['title']}**\n")
        lines.append(_table(table["head"], table["rows"]).rstrip("\n") + "\n")
        if table.get("note"):
            lines.append(f"{table['note']}\n")
    if claim["trainings"]:
        lines.append(f"Trained for it, nothing chosen among steps: {'; '.join(map(_training, claim['trainings']))}.\n")
    run = claim["run"]
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    lines.append(f"{run['resamples']} resamples; {versions}.\n")
    return "\n".join(lines) + "\n"


def _training(run: Mapping[str, Any]) -> str:
    return (
        f"`{run['method']}` ({run['name']}, seed {run['seed']}): {run['steps']} steps on {run['real']} real and "
        f"{run['generated']} generated images"
    )


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n\n"


def _cell(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, list):
        if cell[0] is None:
            return "-"
        low, high = ("-" if bound is None else f"{bound:.3f}" for bound in cell[1:])
        return f"{cell[0]:.3f} [{low}, {high}]"
    return str(cell)
