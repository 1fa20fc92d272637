"""From a job and a recipe to a folder of weights: slices, loop, best step, calibration, card.

A plugin's ``training.py`` brings the network, the loss and what of the network is shipped. What is validated and
calibrated is always the detector itself, built from the tensors that would be shipped: a network that scores otherwise
in training than in use would be noticed at once.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.detector import TorchDetector, Weights, by_shape
from detector_zoo.errors import WeightsError
from detector_zoo.evaluation.equalise import SIDES
from detector_zoo.evaluation.metrics import Metric, auroc, summary
from detector_zoo.evaluation.samples import Sample
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.training import artifact, calibration, curves
from detector_zoo.training.augment import Augmentation
from detector_zoo.training.batches import Batch, ImageBatches, Mix
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Optimiser, Outcome, Schedule, Trainee, accelerator, train
from detector_zoo.training.pictures import evenly
from detector_zoo.training.splits import cut, data_hash
from detector_zoo.weight_specs import WeightSpec

__all__ = ["Course", "Examined", "ImageRecipe", "examine", "fit_images", "image_loss", "judged", "map_loss"]

KEPT_BYTES = 512 * 2**20
"""Prepared validation images that are kept in memory; the rest is prepared anew for every validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What recipes of all methods have in common.

    Attributes:
        network: `WeightSpec.config`.
        preprocessing: `WeightSpec.preprocessing`.
        augmentation: See `detector_zoo.training.augment`; images are equalised before it.
        mix: See there.
        batch: Images a step.
        optimiser: See there.
        schedule: See there.
        slices: Shares of the photographs that the weights are chosen and calibrated on, and do not learn from.
        equalise: Whether all files get one codec history before anything else.
        sides: Smallest and largest side of the part of an image that goes into the augmentation, in pixels.
        half: Whether the weights are shipped, and therefore validated, as float16.
        summary: One line, for the spec.
        licence: Of the weights.
        notes: For the card.
    """

    network: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    optimiser: Optimiser
    schedule: Schedule
    batch: int
    augmentation: tuple[Mapping[str, Any], ...] = ()
    mix: Mix = field(default_factory=Mix)
    slices: Mapping[str, float] = field(default_factory=lambda: {"validation": 0.15, "calibration": 0.1})
    equalise: bool = True
    sides: tuple[int, int] = SIDES
    half: bool = True
    summary: str = ""
    licence: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if set(self.slices) != {"validation", "calibration"}:
            raise ValueError("slices are validation and calibration")

    @property
    def orientation(self) -> str:
        """Whether EXIF is applied, as the weights' preprocessing has it."""
        return str(self.preprocessing.get("exif_orientation", "apply"))

    def spec(self, job: Job, backbone: str | None = None) -> WeightSpec:
        """The weights' spec as far as a recipe knows it."""
        return WeightSpec(
            name=job.name,
            summary=self.summary or f"{job.method}, recipe {job.recipe}",
            config=dict(self.network),
            preprocessing=dict(self.preprocessing),
            backbone=backbone,
            licence=self.licence,
        )

    def shipped(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as they will be shipped, on the CPU."""
        plain = {key: value.detach().cpu() for key, value in tensors.items()}
        return artifact.half(plain) if self.half else plain


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe(Course):
    """Of a network that learns from augmented crops.

    Attributes:
        map_weight: Share of the loss that every position's own logit has, against the mask, for methods with a map.
    """

    map_weight: float = 0.0


class Examined:
    """Images that a detector is examined on, each with the one cut that it always has.

    Args:
        samples: Of a slice.
        equalise: See `detector_zoo.training.pictures.evenly`.
        orientation: See there.
    """

    def __init__(self, samples: Sequence[Sample], *, equalise: bool, orientation: str) -> None:
        self.samples, self._how = samples, {"equalise": equalise, "orientation": orientation}
        self.labels = np.array([s.generated for s in samples])
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def inputs(self, detector: TorchDetector) -> Iterable[Tensor]:
        """What the detector's transform makes of each image; kept as long as there is room."""
        for index, sample in enumerate(self.samples):
            if index in self._kept:
                yield self._kept[index]
                continue
            found = detector.transform(evenly(sample, **self._how))  # type: ignore[arg-type]
            size = found.numel() * found.element_size()
            if self._bytes + size <= KEPT_BYTES:
                self._kept[index] = found
                self._bytes += size
            yield found

    def raw(self, detector: TorchDetector, together: int = 64) -> NDArray[np.float64]:
        """Raw scores, (N,)."""
        out: list[NDArray[np.float64]] = []
        waiting: list[Tensor] = []
        for found in self.inputs(detector):
            waiting.append(found)
            if len(waiting) == together:
                out.append(by_shape(waiting, detector.raw))
                waiting = []
        if waiting:
            out.append(by_shape(waiting, detector.raw))
        return np.concatenate(out)


def judged(labels: NDArray[np.bool_], raw: NDArray[np.float64]) -> dict[str, float]:
    """Metrics that a schedule can monitor, of raw scores that are logits.

    Returns:
        ``auroc``; ``accuracy``, the mean of the two classes', at 0; ``loss``, cross-entropy, classes weighted alike.
    """
    weight = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    return {
        "auroc": auroc(labels, raw),
        "accuracy": float((weight * ((raw > 0) == labels)).sum()),
        "loss": float((weight * np.logaddexp(0, np.where(labels, -raw, raw))).sum()),
    }


def examine(samples: Sequence[Sample], raw: NDArray[np.float64], threshold: float) -> dict[str, dict[str, Metric]]:
    """AUROC, AP and more with intervals, of all images (``all``) and of each kind against all photographs."""
    labels = np.array([s.generated for s in samples])
    out = {"all": summary(labels, raw, threshold)}
    kinds = np.array([s.kind if s.generated else "" for s in samples])
    for kind in sorted(set(kinds[labels]) - {""}):
        chosen = ~labels | (kinds == kind)
        if len(set(kinds[labels])) > 1:
            out[str(kind)] = {"AUROC": summary(labels[chosen], raw[chosen])["AUROC"]}
    return out


def fit_images(
    job: Job,
    recipe: ImageRecipe,
    detector: type[TorchDetector],
    trainee: Trainee,
    tensors: Callable[[nn.Module], Mapping[str, Tensor]] = nn.Module.state_dict,
) -> Path:
    """Train a network on augmented crops and write the folder of its weights.

    Args:
        job: See there.
        recipe: Checked.
        detector: Built from the recipe's ``network`` and ``preprocessing`` and from ``tensors``, by ``from_weights``.
        trainee: See there.
        tensors: Of the network, in evaluation mode: what the detector takes.

    Returns:
        ``job.out``.

    Raises:
        DatasetError: The data do not do.
        ZooError: The training failed, see `loop.train`.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    slices = cut(job.samples, recipe.slices)
    machine = accelerator(job)
    batches = ImageBatches(
        slices["fit"],
        Augmentation.of(recipe.augmentation),
        recipe.mix,
        size=recipe.batch,
        seed=job.seed,
        equalise=recipe.equalise,
        sides=recipe.sides,
        orientation=recipe.orientation,
        shard=(machine.process_index, machine.num_processes),
    )
    spec = recipe.spec(job)
    validation, kept = (
        Examined(slices[name], equalise=recipe.equalise, orientation=recipe.orientation)
        for name in ("validation", "calibration")
    )

    def build(network: nn.Module) -> TorchDetector:
        return detector.from_weights(Weights(spec, recipe.shipped(tensors(network)))).to(machine.device)

    def judge(network: nn.Module) -> Mapping[str, float]:
        return judged(validation.labels, validation.raw(build(network)))

    trainee.network.to(memory_format=torch.channels_last)
    outcome = train(
        trainee,
        batches.__getitem__,
        judge,
        optimiser=recipe.optimiser,
        schedule=recipe.schedule,
        epoch=len(batches),
        job=job,
        fingerprint=job.fingerprint(),
        machine=machine,
    )
    trainee.network.load_state_dict(outcome.tensors)
    best = build(trainee.network.eval())
    if machine.is_main_process:
        finish(
            job,
            recipe,
            spec,
            tensors(trainee.network),
            slices,
            outcome,
            validation.raw(best),
            kept.raw(best),
            str(machine.device),
        )
    # Whoever called looks for the folder, on every process.
    machine.wait_for_everyone()
    return job.out


def finish(
    job: Job,
    recipe: Course,
    spec: WeightSpec,
    tensors: Mapping[str, Tensor],
    slices: Mapping[str, Sequence[Sample]],
    outcome: Outcome,
    validation: NDArray[np.float64],
    kept: NDArray[np.float64],
    device: str,
) -> WeightSpec:
    """Calibrate, measure, draw and write a run's folder.

    Args:
        job: See there.
        recipe: See there.
        spec: From `Course.spec`.
        tensors: Of the best step, as the detector takes them.
        slices: From `splits.cut`.
        outcome: Of the loop.
        validation: Raw scores of the validation slice.
        kept: Raw scores of the calibration slice.
        device: What it was trained on.

    Returns:
        The spec as written.
    """
    found = calibration.fit([s.generated for s in slices["calibration"]], kept)
    fit = found if found.scale > 0 else None
    threshold = -fit.offset / fit.scale if fit else 0.0
    names = sorted({s.source for s in job.samples})
    made = artifact.Made(
        spec=spec,
        tensors=recipe.shipped(tensors),
        fit=fit,
        metrics=examine(slices["validation"], validation, threshold),
        counts={name: _count(members) for name, members in slices.items()},
        sources={name: _count([s for s in job.samples if s.source == name]) for name in names},
        data_sha256=data_hash(job.samples),
        recipe=job.recipe,
        values=job.values,
        data=job.data,
        seed=job.seed,
        steps=(outcome.steps, outcome.step),
        seconds=outcome.seconds,
        why=outcome.why,
        machine=f"{device} ({platform.machine()}, torch {torch.__version__})",
        notes=recipe.notes,
    )
    curves.draw(job.out, spec.name)
    return artifact.write_folder(made, job.out)


def image_loss(recipe: Course) -> Callable[[nn.Module, Batch], Tensor]:
    """Binary cross-entropy of a network's logits, (N,) or (N, 1), on normalised crops."""
    inputs = Preprocessing.of("recipe", recipe.preprocessing)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        logits = network(inputs.normalise(batch.inputs)).float()
        return functional.binary_cross_entropy_with_logits(logits.flatten(), batch.labels)

    return loss


def map_loss(recipe: ImageRecipe, maps: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
    """Cross-entropy of the image's logit, the mean of its positions', and of every position's own against the mask.

    An image counts as generated if any of it is; a position's target is the share of generated pixels around it.

    Args:
        recipe: With its ``map_weight``.
        maps: A network and normalised crops (N, 3, S, S) to the logits of the positions, (N, h, w).

    Raises:
        WeightsError: When called, if the network's map does not cover the crop evenly.
    """
    inputs = Preprocessing.of("recipe", recipe.preprocessing)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        if batch.masks is None:
            raise WeightsError("a map is learnt from images, not from features")
        grid = maps(network, inputs.normalise(batch.inputs)).float()
        whole = functional.binary_cross_entropy_with_logits(grid.mean((1, 2)), batch.labels)
        target = functional.interpolate(batch.masks[:, None], grid.shape[1:], mode="area")[:, 0]
        local = functional.binary_cross_entropy_with_logits(grid, target)
        return (1 - recipe.map_weight) * whole + recipe.map_weight * local

    return loss


def _count(samples: Sequence[Sample]) -> tuple[int, int]:
    generated = sum(s.generated for s in samples)
    return len(samples) - generated, generated
