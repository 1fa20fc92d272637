"""Training a linear head on frozen features: features once, kept on disk, then the head in seconds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo import convert
from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.augment import Augmentation
from detector_zoo.training.batches import Batch, probabilities
from detector_zoo.training.checkpoints import Metrics
from detector_zoo.training.course import Course, Examined, finish, judged
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Outcome, Trainee, accelerator, train
from detector_zoo.training.pictures import evenly, window
from detector_zoo.training.splits import cut

__all__ = ["Frozen", "HeadRecipe", "fit_head"]

SHARD = 64
"""Images whose features lie in one file: what is lost when a run is killed."""
TOGETHER = 16
"""Images that go through the frozen network at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRecipe(Course):
    """Of a linear head on frozen features.

    Attributes:
        versions: Augmented versions of each image that features are computed of.
        solver: ``steps`` of the optimiser; or ``logistic``: the minimum of the cross-entropy and of ``l2`` on
            standardised features, which the optimiser and the schedule have no part in.
        l2: Penalty of the logistic regression: half the square of the weights, over the number of images.
    """

    versions: int = 1
    solver: Literal["steps", "logistic"] = "steps"
    l2: float = 1.0

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is made anew, and its methods still mean the old one.
        Course.__post_init__(self)
        if self.mix.pairs:
            raise ValueError("a head on features knows no pairs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What a head stands on.

    Attributes:
        key: Hash or name of the network's weights and of whatever its features depend on.
        dim: Features of an image.
        pixels: An RGB image to the network's input, (3, H, W) uint8.
        embed: Inputs of one size (N, 3, H, W) uint8 to features (N, dim).
    """

    key: str
    dim: int
    pixels: Callable[[Image.Image], Tensor]
    embed: Callable[[Tensor], Tensor]


def fit_head(
    job: Job,
    recipe: HeadRecipe,
    frozen: Frozen,
    detector: Callable[[Weights], TorchDetector],
    tensors: Callable[[nn.Linear], Mapping[str, Tensor]],
    *,
    backbone: str | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
) -> Path:
    """Train a linear layer from zero on cached features and write the folder of its weights.

    Args:
        job: See there.
        recipe: Checked.
        frozen: Where features come from.
        detector: From weights, spec and all, to the detector that they make.
        tensors: The linear layer to what the detector takes.
        backbone: Of the weights' spec.
        after_step: See `loop.Trainee`.

    Returns:
        ``job.out``.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    slices = cut(job.samples, recipe.slices)
    fit = [s for s in slices["fit"] if not s.generated or recipe.mix.kinds.get(s.kind, 1.0) > 0]
    machine = accelerator(job)
    with machine.main_process_first():
        table = torch.stack([_features(job, recipe, frozen, fit, version) for version in range(recipe.versions)])
        seen = _features(job, recipe, frozen, slices["validation"], None)
    labels = torch.tensor([float(s.generated) for s in fit])
    p = _weights(fit, recipe)
    head = nn.Linear(frozen.dim, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    truth = np.array([s.generated for s in slices["validation"]])

    def judge(network: nn.Module) -> Mapping[str, float]:
        place = next(network.parameters()).device
        return judged(truth, network(seen.to(place))[:, 0].double().cpu().numpy())

    def batch(step: int) -> Batch:
        rng = np.random.default_rng((job.seed, step))
        rows = rng.choice(len(fit), recipe.batch, p=p)
        return Batch(table[rng.integers(recipe.versions, size=recipe.batch), rows], labels[rows])

    fingerprint = job.fingerprint(frozen.key)
    device = "cpu" if recipe.solver == "logistic" else str(machine.device)
    if recipe.solver == "logistic":
        outcome = _solved(job, recipe, head, table, labels, p, judge)
    else:
        outcome = train(
            Trainee(network=head, loss=_loss, after_step=after_step),
            batch,
            judge,
            optimiser=recipe.optimiser,
            schedule=recipe.schedule,
            epoch=-(-len(fit) // recipe.batch),
            # The table is in memory: there is nothing for other processes to prepare.
            job=replace(job, workers=0),
            fingerprint=fingerprint,
            machine=machine,
        )
    head.cpu().load_state_dict(outcome.tensors)
    spec = recipe.spec(job, backbone)
    if machine.is_main_process:
        made = detector(Weights(spec, recipe.shipped(tensors(head)))).to(machine.device)
        validation, kept = (
            Examined(slices[name], equalise=recipe.equalise, orientation=recipe.orientation).raw(made)
            for name in ("validation", "calibration")
        )
        finish(job, recipe, spec, tensors(head), slices, outcome, validation, kept, device)
    machine.wait_for_everyone()
    return job.out


def _loss(network: nn.Module, batch: Batch) -> Tensor:
    return functional.binary_cross_entropy_with_logits(network(batch.inputs)[:, 0].float(), batch.labels)


def _solved(
    job: Job,
    recipe: HeadRecipe,
    head: nn.Linear,
    table: Tensor,
    labels: Tensor,
    p: np.ndarray,
    judge: Callable[[nn.Module], Mapping[str, float]],
) -> Outcome:
    """Logistic regression by L-BFGS in double precision."""
    started = time.monotonic()
    x = table.flatten(0, 1).double()
    y = labels.double().repeat(len(table))
    weight = torch.from_numpy(p).repeat(len(table)) / len(table)
    mean = weight @ x
    spread = (weight @ (x - mean) ** 2).sqrt().clamp(min=1e-8)
    z = (x - mean) / spread
    theta = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(z @ theta[:-1] + theta[-1], y, weight, reduction="sum")
        loss = loss + 0.5 * recipe.l2 * (theta[:-1] ** 2).sum() / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    final = float(closure().detach())
    with torch.no_grad():
        scaled = theta[:-1] / spread
        head.weight.copy_(scaled)
        head.bias.copy_(theta[-1] - scaled @ mean)
        metrics = dict(judge(head))
    record = Metrics(job.out)
    record.add(step=1, loss=final, seconds=round(time.monotonic() - started, 2))
    record.add(step=1, **{f"val_{key}": value for key, value in metrics.items()})
    return Outcome(
        tensors={key: value.detach().clone() for key, value in head.state_dict().items()},
        metrics=metrics,
        step=1,
        steps=1,
        seconds=time.monotonic() - started,
        why="the regression has converged",
    )


def _weights(samples: Sequence[Sample], recipe: HeadRecipe) -> np.ndarray:
    """How often each sample is drawn: the classes by the mix's share, kinds and sources balanced within them."""
    p = np.zeros(len(samples))
    for generated, share in ((True, recipe.mix.generated), (False, 1 - recipe.mix.generated)):
        places = [i for i, s in enumerate(samples) if s.generated == generated]
        p[places] = share * probabilities([samples[i] for i in places], recipe.mix)
    return p


def _features(job: Job, recipe: HeadRecipe, frozen: Frozen, samples: Sequence[Sample], version: int | None) -> Tensor:
    """Features, (N, dim) float32, of an augmented version of each sample, or (None) of what it is validated on."""
    augmentation = Augmentation.of(recipe.augmentation)

    def pixels(sample: Sample) -> Tensor:
        if version is None:
            return frozen.pixels(evenly(sample, equalise=recipe.equalise, orientation=recipe.orientation))
        seed = (job.seed, version, int(sample.sha256[:12], 16))
        how = {"equalise": recipe.equalise, "sides": recipe.sides, "orientation": recipe.orientation}
        return frozen.pixels(augmentation(window(sample, (*seed, 0), **how), (*seed, 1)).image)  # type: ignore[arg-type]

    how = (frozen.key, version, job.seed, recipe.equalise, recipe.sides, recipe.orientation, recipe.augmentation)
    folder = job.out / "features"
    folder.mkdir(exist_ok=True)
    found: dict[str, Tensor] = {}
    for part in _parts(samples):
        text = json.dumps([how, [s.sha256 for s in part]], default=str)
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
        if not path.is_file():
            values = dict(zip([s.sha256 for s in part], _embedded(frozen, [pixels(s) for s in part]), strict=True))
            with convert.atomic(path) as staging:
                convert.write(values, staging)
        found |= convert.read_safetensors(path)
    return torch.stack([found[s.sha256] for s in samples]).float()


def _embedded(frozen: Frozen, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Features of each input, those of one shape together."""
    out: dict[int, Tensor] = {}
    shapes: dict[torch.Size, list[int]] = {}
    for index, pixels in enumerate(inputs):
        shapes.setdefault(pixels.shape, []).append(index)
    with torch.inference_mode():
        for places in shapes.values():
            for start in range(0, len(places), TOGETHER):
                chosen = places[start : start + TOGETHER]
                found = frozen.embed(torch.stack([inputs[i] for i in chosen])).float().cpu()
                out |= dict(zip(chosen, found, strict=True))
    return [out[index].clone() for index in range(len(inputs))]


def _parts(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """By hash, so that more data elsewhere leave most parts what they were."""
    buckets: dict[str, list[Sample]] = {}
    digits = 1 if len(samples) <= 16 * SHARD else 2
    for sample in sorted(samples, key=lambda s: s.sha256):
        buckets.setdefault(sample.sha256[:digits], []).append(sample)
    yield from buckets.values()
