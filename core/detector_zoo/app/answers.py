"""What `detector_zoo.app.analysis.Analyst` answers: frozen records, each of which is JSON by ``to_dict()``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from detector_zoo.app.facts import FileFacts

__all__ = ["Agreement", "Analysis", "Exchanged", "Heat", "Launderings", "Served", "Survival", "Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One detector's answer for one image: a score, or an error.

    Attributes:
        detector: Method name.
        weights: Tag, with the variant where there is one, or "".
        weights_sha256: Of the weights' file, or "".
        log_odds: Above ``threshold`` means generated; None with an error, as all other numbers.
        probability: Logistic function of ``log_odds``, in [0, 1]; not a probability unless ``calibrated``.
        raw: The method's own unit.
        threshold: In log-odds.
        label: "real", "generated", "inconclusive", or "" with an error.
        calibrated: Whether ``log_odds`` were fitted to be log-odds.
        localizes: Whether there is a heatmap.
        licence: Of the weights.
        note: What a reader of the score must know.
        error: Why there is no score, or "".
    """

    detector: str
    weights: str
    weights_sha256: str
    log_odds: float | None = None
    probability: float | None = None
    raw: float | None = None
    threshold: float | None = None
    label: str = ""
    calibrated: bool
    localizes: bool
    licence: str
    note: str = ""
    error: str = ""

    @property
    def name(self) -> str:
        """``method.tag``, or the method alone where there are no weights."""
        return f"{self.detector}.{self.weights}" if self.weights else self.detector

    def to_dict(self) -> dict[str, Any]:
        """JSON, with ``name``."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many detectors say what; those without a score are counted apart."""

    generated: int
    real: int
    inconclusive: int
    failed: int

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> Agreement:
        """Count."""
        labels = [verdict.label for verdict in verdicts]
        return cls(labels.count("generated"), labels.count("real"), labels.count("inconclusive"), labels.count(""))

    @property
    def scored(self) -> int:
        """Detectors with a score."""
        return self.generated + self.real + self.inconclusive

    def to_dict(self) -> dict[str, int]:
        """JSON, with ``scored``."""
        return {**asdict(self), "scored": self.scored}


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Everything about one file.

    Attributes:
        name: The file's base name, printable.
        sha256: Of its bytes.
        facts: What it tells without a detector.
        verdicts: In the order of the detectors.
        agreement: Of the verdicts.
        do_not_conclude: One sentence each: what the verdicts do not show.
        versions: Of detector-zoo and of what decodes and computes.
    """

    name: str
    sha256: str
    facts: FileFacts
    verdicts: tuple[Verdict, ...]
    agreement: Agreement
    do_not_conclude: tuple[str, ...]
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "file": self.facts.to_dict(),
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "agreement": self.agreement.to_dict(),
            "do_not_conclude": list(self.do_not_conclude),
            "versions": dict(self.versions),
        }


@dataclass(frozen=True, slots=True)
class Survival:
    """One detector's verdict before and after one perturbation.

    Attributes:
        perturbation: ``name`` or ``name:number``.
        before: Of the file as it is.
        after: Of the perturbed picture.
        survives: Whether the label is the same; None where there was no verdict to survive: no score before or
            after, or an inconclusive one before.
    """

    perturbation: str
    before: Verdict
    after: Verdict
    survives: bool | None

    @classmethod
    def of(cls, perturbation: str, before: Verdict, after: Verdict) -> Survival:
        """Compare."""
        decided = before.label in ("real", "generated") and after.label != ""
        return cls(perturbation, before, after, before.label == after.label if decided else None)

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "detector": self.before.name,
            "perturbation": self.perturbation,
            "survives": self.survives,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Launderings:
    """Every detector under every perturbation.

    Attributes:
        name: The file's base name, printable.
        sha256: Of the file's bytes.
        rows: Detector by detector, in the order of the perturbations.
    """

    name: str
    sha256: str
    rows: tuple[Survival, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"name": self.name, "sha256": self.sha256, "rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """An edit, and what is left of its verdict when the original's pixels are put back outside the mask.

    Attributes:
        image: The exchanged picture, RGB, upright.
        share: Of the picture that the mask covers, in [0, 1].
        outside: Of the pixels outside the mask, the share that the edit had changed, in [0, 1].
        original: Verdicts on the original.
        edited: Verdicts on the edit.
        exchanged: Verdicts on the exchanged picture.
        notes: What a reader must know.
    """

    image: Image.Image
    share: float
    outside: float
    original: tuple[Verdict, ...]
    edited: tuple[Verdict, ...]
    exchanged: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON, without the picture."""
        return {
            "mask_share": self.share,
            "changed_outside": self.outside,
            **{
                name: [verdict.to_dict() for verdict in getattr(self, name)]
                for name in ("original", "edited", "exchanged")
            },
            "notes": list(self.notes),
        }


class Heat(NamedTuple):
    """A heatmap and the picture that it lies on.

    Attributes:
        heat: (H, W) float32, higher where the picture looks generated.
        image: RGB, (W, H), turned as the detector sees it.
    """

    heat: NDArray[np.float32]
    image: Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A detector that is loaded.

    Attributes:
        name: ``method.tag``, or the method alone.
        detector: Method.
        weights: Tag or "".
        weights_sha256: Of the file, or "".
        summary: One line.
        licence: Of the weights.
        trained_on: Data.
        threshold: In log-odds.
        inconclusive: Half-width of the band around it where no class is named, log-odds.
        calibrated: Whether its log-odds were fitted to be log-odds.
        fitted_on: The data that they were fitted on, or "".
        localizes: Whether it has heatmaps.
        results: Measured figures, as in registry.yaml.
    """

    name: str
    detector: str
    weights: str
    weights_sha256: str
    summary: str
    licence: str
    trained_on: str
    threshold: float
    inconclusive: float
    calibrated: bool
    fitted_on: str
    localizes: bool
    results: tuple[Mapping[str, Any], ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "results": [dict(result) for result in self.results]}
