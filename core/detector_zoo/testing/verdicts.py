"""How a property says that it does not hold, or that there is nothing to ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Broken", "DoesNotApply", "Finding", "NotRun"]

Status = Literal["ok", "failed", "does not apply", "not run"]


class Broken(Exception):  # noqa: N818 - a verdict
    """The property does not hold; the message says what was found instead."""


class DoesNotApply(Exception):  # noqa: N818 - a verdict
    """The detector cannot do what the property is about."""


class NotRun(Exception):  # noqa: N818 - a verdict
    """What the property needs is not there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the examination of one property found.

    Attributes:
        name: Of the property.
        claim: What holds for a detector that has it.
        status: ``failed`` is the only one that makes a detector fail.
        detail: One line: what was found, or why it was not looked for.
    """

    name: str
    claim: str
    status: Status
    detail: str
