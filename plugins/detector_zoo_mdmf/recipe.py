"""What a training of MDMF depends on besides the data, and what of the data it does not learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training import splits
from detector_zoo.training.course import Course
from detector_zoo.training.loop import Optimiser, Schedule
from detector_zoo_mdmf.signatures import BankRule

__all__ = ["Recipe", "Tuning"]

SINGLE = ("running_mean", "running_var", "embedder.mean", "embedder.std", "log_bandwidth", "bank_term")
"""Stay in single precision: they are few, and the score is a difference of means that they would shift as a whole."""

SELECTION_SOURCES = frozenset(
    {"openimages-200", "scratch", "darknet", "dlib", "python3-sklearn", "lomiri-wallpapers-16.04", "sr-esrgan"}
)
"""Sources that no model of the selection stage learns from; chosen before any experiment for their variety."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How a trunk is fine-tuned, see `detector_zoo_mdmf.trunk.tune`.

    Attributes:
        batch: Tiles a step.
        optimiser: See there.
        schedule: See there; the last step is kept.
    """

    batch: int
    optimiser: Optimiser
    schedule: Schedule

    def __post_init__(self) -> None:
        if self.batch < 1 or self.schedule.average or self.schedule.monitor != "loss":
            raise ValueError("batch is at least 1, monitor is loss, and there is no average")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Course):
    """Of MDMF. ``batch`` counts images, half of them generated; no step is chosen, the last one is kept.

    Attributes:
        backbone: Of the catalogue, what a ``vit`` or ``dinov2`` embedder of ``network`` is filled with.
        teacher: CLIP's image tower, whose tokens a ``distilled`` embedder learns to tell: of the catalogue, or a
            safetensors file (a path with a slash or the suffix).
        teacher_model: open_clip's name of it.
        block: Of the teacher, counted from 1, whose tokens are learnt.
        trunk: How the trunk of a ``distilled`` embedder learns to tell the teacher's tokens; None leaves it as it is.
        ridge: Weight of the squared length of the map onto the teacher's tokens.
        versions: Of every image beside the one that it would be validated on.
        launder: Side, pixels, of the crops that `detector_zoo_mdmf.laundering` makes of an image; None for the
            ``augmentation``.
        kept: Tokens that are kept of a tile that is learnt from, drawn at random; None for all.
        tokens: Of an image that a step sees.
        by_source: Whether ``mix.balance`` balances sources as wholes, whatever kinds and generators they hold.
        regulariser: lambda of J, see `detector_zoo_mdmf.mmd.criterion`.
        bank_rule: How the bank (``network.head.bank`` signatures) is chosen among the photographs' patches.
        kept_out: ``slices`` cuts as all trainings do; ``seventh`` keeps out one photograph in seven, which both
            validates and calibrates (nothing is chosen by it); ``selection`` the collections of the project's data
            that MDMF's recipe was chosen on.
        reference: Whether signatures of the teacher's own tokens are learnt as well, for the card.
    """

    backbone: str | None = None
    teacher: str | None = None
    teacher_model: str = "ViT-B-16-quickgelu"
    block: int = 6
    trunk: Tuning | None = None
    ridge: float = 3e3
    versions: int = 2
    launder: int | None = None
    kept: int | None = None
    tokens: int = 8
    by_source: bool = False
    regulariser: float = 1e-2
    bank_rule: BankRule = "herding"
    kept_out: Literal["slices", "seventh", "selection"] = "slices"
    reference: bool = False

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is made anew, and its methods still mean the old one.
        Course.__post_init__(self)
        if set(self.network) != {"embedder", "head"}:
            raise ValueError("network is embedder and head")
        kind = self.kind
        if (kind == "distilled") != (self.teacher is not None) or (kind in {"vit", "dinov2"}) != (
            self.backbone is not None
        ):
            raise ValueError("a distilled embedder has a teacher, a vit or dinov2 a backbone, and no other has")
        if self.trunk is not None and kind != "distilled":
            raise ValueError("only a distilled embedder has a trunk to tune")
        if self.kept is not None and kind == "distilled":
            raise ValueError("a distilled embedder learns from whole tiles: kept is null")
        if self.reference and self.teacher is None:
            raise ValueError("reference asks for a teacher")
        if self.launder is not None and self.augmentation:
            raise ValueError("launder stands in the place of an augmentation")
        if self.mix.pairs or self.mix.generated != 0.5 or self.batch % 2:
            raise ValueError("J compares as many real as generated patches and knows no pairs")
        if self.schedule.average:
            raise ValueError("the last step is kept, there is no average")

    @property
    def kind(self) -> str:
        """Of the embedder."""
        return str(self.network["embedder"].get("kind"))

    def shipped(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Course.shipped`; some stay in single precision."""
        plain = {k: v.detach().cpu() for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
        return Course.shipped(self, plain) | {k: v for k, v in plain.items() if k.endswith(SINGLE)}

    def cut(self, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
        """Slices by name, see ``kept_out``.

        Raises:
            DatasetError: A slice lacks one of the classes.
        """
        if self.kept_out == "slices":
            return splits.cut(samples, self.slices)
        names: dict[str, str] = {}
        components = splits.components(samples)
        for sample, component in zip(samples, components, strict=True):
            # The photograph's own hash where it is known, so that what was made from it changes nothing.
            names[component] = min(names.get(component, "~"), sample.group or sample.sha256)
        rule: Callable[[Sample], bool] = _seventh if self.kept_out == "seventh" else _selection
        out: dict[str, list[Sample]] = {"fit": [], "validation": []}
        for sample, component in zip(samples, components, strict=True):
            place = "validation" if rule(replace(sample, group=names[component])) else "fit"
            out[place].append(sample)
        for name, members in out.items():
            if len({s.label for s in members}) < 2:
                found = f"the {name} slice ({len(members)} of {len(samples)} images) lacks a class"
                raise DatasetError(f"kept_out {self.kept_out}: {found}", hint="--set kept_out=slices")
        return out | {"calibration": out["validation"]}


def _seventh(sample: Sample) -> bool:
    return int(_hexadecimal(sample.group)[:8], 16) % 7 == 0


def _selection(sample: Sample) -> bool:
    """Whole sources where there are several; a third elsewhere.

    Of the collections that hold one picture a generator, and of inpainting, every third by the hash of the generator's
    family (its name up to the first blank, dot or slash), or of the file where the collection has a single generator.
    """
    if sample.source in SELECTION_SOURCES:
        return True
    if sample.source in {"comfyui-examples", "sdnext-reference"}:
        family = sample.generator.replace("/", " ").replace(".", " ").split(" ")[0]
        return hashlib.sha256(family.encode()).digest()[0] % 3 == 0
    if sample.source == "inpaint-anything":
        return int(sample.sha256[:4], 16) % 3 == 0
    return False


def _hexadecimal(name: str) -> str:
    """A hash as it is, of anything else the hash."""
    known = len(name) == 64 and set(name) <= set("0123456789abcdef")
    return name if known else hashlib.sha256(name.encode()).hexdigest()
