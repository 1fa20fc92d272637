"""Which labels of a stranger's classifier mean generated and which real: as the user says, or by a table of words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from detector_zoo.errors import UnknownDetectorError

__all__ = ["GENERATED", "REAL", "Labels", "given", "infer"]

GENERATED = frozenset({
    "ai", "aigenerated", "artificial", "deepfake", "deepfakes", "diffusion", "fake", "fakes", "gan", "generated",
    "machine", "synthesised", "synthesized", "synthetic",
})  # fmt: skip
"""Words by which a label means generated."""
REAL = frozenset({
    "authentic", "camera", "genuine", "hum", "human", "natural", "nature", "original", "photo", "photograph", "real",
})  # fmt: skip
"""Words by which a label means real."""
_NEGATIONS = frozenset({"no", "non", "not", "without"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_FORM = "#generated=LABEL,LABEL;real=LABEL,LABEL"


@dataclass(frozen=True, slots=True)
class Labels:
    """A mapping of a classifier's outputs.

    Attributes:
        generated: Indices of the outputs that mean generated.
        real: Of those that mean real. The others are in neither, and count for nothing.
        inferred: Whether the words decided, not the user.
    """

    generated: tuple[int, ...]
    real: tuple[int, ...]
    inferred: bool = False

    def canonical(self, names: Mapping[int, str]) -> str:
        """``generated=...;real=...``, as `given` reads it back."""
        groups = {"generated": self.generated, "real": self.real}
        return ";".join(f"{group}={','.join(quote(names[i], safe='') for i in ids)}" for group, ids in groups.items())


def infer(names: Mapping[int, str], where: str) -> Labels:
    """Sort every label by its words; see `GENERATED` and `REAL`.

    Args:
        names: Of the outputs.
        where: The model, for messages.

    Raises:
        UnknownDetectorError: A label has no word of the table, words of both kinds or a negation, or one of the
            groups is empty; the message lists the labels.
    """
    groups: dict[str, list[int]] = {"generated": [], "real": []}
    for index, name in names.items():
        words = {word.lower() for word in _WORD.findall(name)}
        kinds = [kind for kind, table in (("generated", GENERATED), ("real", REAL)) if words & table]
        if len(kinds) != 1 or words & _NEGATIONS:
            raise _unclear(f"{where}: which of its labels mean generated cannot be told", names)
        groups[kinds[0]].append(index)
    if not groups["generated"] or not groups["real"]:
        raise _unclear(f"{where}: its labels are not of both kinds", names)
    return Labels(tuple(groups["generated"]), tuple(groups["real"]), inferred=True)


def given(text: str, names: Mapping[int, str], where: str) -> Labels:
    """Read ``generated=fake,ai;real=human``: labels, in any case, or their numbers; percent-encoded where need be.

    Raises:
        UnknownDetectorError: It has another form, names a label that there is not, or one twice.
    """
    by_name = {str(index): index for index in names} | {name.casefold(): index for index, name in names.items()}
    groups: dict[str, tuple[int, ...]] = {}
    for part in text.split(";"):
        group, equals, labels = part.partition("=")
        if group not in ("generated", "real") or not equals or not labels or group in groups:
            raise UnknownDetectorError(f"{where}: {part!r} is not of the form {_FORM}")
        wanted = [unquote(label).strip() for label in labels.split(",")]
        unknown = [label for label in wanted if label.casefold() not in by_name]
        if unknown:
            raise _unclear(f"{where}: it has no label {unknown[0]!r}", names)
        groups[group] = tuple(by_name[label.casefold()] for label in wanted)
    if set(groups) != {"generated", "real"}:
        raise UnknownDetectorError(f"{where}: labels of both kinds are needed: {_FORM}")
    both = groups["generated"] + groups["real"]
    if len(set(both)) < len(both):
        raise _unclear(f"{where}: a label is named twice", names)
    return Labels(groups["generated"], groups["real"])


def _unclear(message: str, names: Mapping[int, str]) -> UnknownDetectorError:
    shown = ", ".join(f"{index}: {name!r}" for index, name in list(names.items())[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return UnknownDetectorError(f"{message}; they are {shown}{more}", hint=f"say it in the name: '...{_FORM}'")
