"""`Sample`: one labelled image, as every adapter of data sets yields it and training and evaluation take it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Label", "Sample", "source_of"]

Label = Literal["real", "generated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One labelled image.

    Attributes:
        path: The file.
        label: ``real`` or ``generated``; a local edit is generated.
        generator: What made it, "" for a real one or where nobody knows.
        source: The collection that the file comes from.
        split: ``train``, ``val``, ...; "" where the set has none.
        kind: ``photo``, ``t2i``, ``inpaint``, ``recon``, ``edit``, ``splice``, ``upscale``, ...; "" unknown.
        group: What a split must not cut: the photograph that an image is, or was made from. Equal groups stay
            together; "" stands for the file alone.
        original: The photograph that an edit was made from, if it is at hand.
        mask: Picture of the edited area, white where generated, of the image's own size.
        sha256: Of the file, "" where it was not hashed.
    """

    path: Path
    label: Label
    generator: str = ""
    source: str = ""
    split: str = ""
    kind: str = ""
    group: str = ""
    original: Path | None = None
    mask: Path | None = None
    sha256: str = ""

    @property
    def generated(self) -> bool:
        """Whether the label is ``generated``."""
        return self.label == "generated"


def source_of(sample: Sample) -> str:
    """What a sample shares with those that are made from the same photograph: its group, the photograph, or itself."""
    return sample.group or str(sample.original or sample.path)
