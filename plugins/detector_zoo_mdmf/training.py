"""How MDMF learns: tokens of frozen networks once, then phi and the bandwidth, the bank, the calibration.

Two kinds of embedder: the paper's, a transformer of the catalogue, and one that is taught first to tell a
transformer's tokens (`detector_zoo_mdmf.distil`), by ridge regression in closed form. In ``metrics.jsonl`` the loss is
-J, in the row of a validation that of the validation slice; the AUROC there is that of the bank chosen at that step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detector_zoo import weights
from detector_zoo.convert import sha256_of
from detector_zoo.detector import Weights
from detector_zoo.evaluation.metrics import auroc, bootstrap
from detector_zoo.evaluation.samples import Sample
from detector_zoo.loading import pick_device
from detector_zoo.networks.state import load_strictly
from detector_zoo.registry import lookup
from detector_zoo.training import calibration, pretrained
from detector_zoo.training.batches import Batch
from detector_zoo.training.course import Examined, finish, judged
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Outcome, Trainee, accelerator, train
from detector_zoo.training.recipes import RecipeError, build
from detector_zoo_mdmf import teacher
from detector_zoo_mdmf.distil import fit_map
from detector_zoo_mdmf.distilled import DistilledEmbedder, build_embedder
from detector_zoo_mdmf.embedder import PatchEmbedder, VitEmbedder
from detector_zoo_mdmf.mmd import SignatureHead, criterion
from detector_zoo_mdmf.model import MDMF, Network
from detector_zoo_mdmf.recipe import Recipe
from detector_zoo_mdmf.signatures import Draws, banked, candidates, score_sets
from detector_zoo_mdmf.tiles import Tiling
from detector_zoo_mdmf.trunk import cells_of, tune
from detector_zoo_mdmf.views import Sight, View, collect

__all__ = ["fit"]

HELD_OUT_DRAWS = 8
"""Batches of the validation slice that its J is averaged over."""


def fit(job: Job) -> Path:
    """Train as ``recipes/`` say; returns the folder of the weights.

    Raises:
        RecipeError: The recipe is not one of MDMF.
        DatasetError: The data do not do.
        WeightsError: The backbone or the teacher cannot be had.
    """
    where = f"{job.method}, recipe {job.recipe}"
    recipe = build(Recipe, job.values, where)
    job.out.mkdir(parents=True, exist_ok=True)
    slices = recipe.cut(job.samples)
    machine = accelerator(job)
    try:
        embedder = build_embedder(recipe.network["embedder"])
        head = SignatureHead(embedder.dim, **recipe.network["head"])
        tiling = Tiling.from_preprocessing(recipe.preprocessing, embedder.patch, embedder.unit)
    except (KeyError, TypeError) as error:
        raise RecipeError(f"{where}: network or preprocessing: {error}") from error
    embedder.eval().requires_grad_(False)
    with machine.main_process_first():
        sight = _sight(job, recipe, embedder, tiling)
        versions = [collect(job, recipe, sight, version) for version in range(1 + recipe.versions)]
    notes: list[str] = []
    if isinstance(embedder, DistilledEmbedder):
        if recipe.trunk is not None:
            versions, left, moved = _tuned(job, recipe, embedder, tiling, slices, versions, sight.key, machine)
            # What the head has learnt, it learnt on tokens of the trunk as it was.
            job = replace(job, resume=job.resume and not moved)
            notes.append(
                f"The trunk was fine-tuned for {recipe.trunk.schedule.steps} steps of {recipe.trunk.batch} tiles, and "
                f"{1 - left:.3f} of the (weighted) variance of the teacher's tokens told on the validation slice."
            )
        embedder.cpu()
        learn = [(v[0], v[1]) for s in slices["fit"] for seen in versions for v in seen[s.sha256]]
        explained = fit_map(embedder, learn, recipe.ridge)
        if recipe.half:
            embedder.map.half().float()
        notes.append(f"The embedder's map explains {explained:.3f} of the variance of the teacher's tokens.")
        if recipe.reference:
            notes.append(_reference(job, recipe, slices, versions, sight.key, machine))
    embed = _tokens(embedder)
    pupils = [[torch.cat([embed(v) for v in seen[s.sha256]]) for seen in versions] for s in slices["fit"]]
    held = [torch.cat([embed(v) for v in versions[0][s.sha256]]) for s in slices["validation"]]
    torch.manual_seed(job.seed)
    head = SignatureHead(embedder.dim, **recipe.network["head"])
    head, outcome = _learn(job, recipe, head, slices, pupils, held, sight.key, machine)
    if machine.is_main_process:
        _finish(job, recipe, slices, embedder, head, outcome, notes, str(machine.device))
    machine.wait_for_everyone()
    return job.out


def _sight(job: Job, recipe: Recipe, embedder: PatchEmbedder, tiling: Tiling) -> Sight:
    """Fill the frozen networks; the embedder in place."""
    device = pick_device(job.device)
    key = f"{dict(recipe.network['embedder'])} {dict(recipe.preprocessing)} {recipe.half}"
    if isinstance(embedder, VitEmbedder):
        file = weights.fetch(lookup(str(recipe.backbone)), progress=not job.quiet)
        # The mask token is of use in pre-training alone; some copies of DINOv2 still carry it.
        load_strictly(embedder.vit, weights.read(file), str(recipe.backbone), ignore=("mask_token",))
        embedder.to(device)
        return Sight(key=f"{key} {sha256_of(file)}", tiling=tiling, look=lambda x: (embedder(x.to(device)),))
    trunk: Any = embedder.trunk if isinstance(embedder, DistilledEmbedder) else embedder
    own = set(trunk.state_dict())
    found = {name: value for name, value in pretrained.efficientnet_lite0().items() if name in own}
    load_strictly(trunk, found, "EfficientNet-lite0")
    if recipe.half:
        # What is shipped are half-precision numbers: everything after is learnt on what those give.
        trunk.half().float()
    embedder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not isinstance(embedder, DistilledEmbedder):
        return Sight(key=f"{key} ImageNet", tiling=tiling, look=lambda x: (embedder(_laid(x, device)),))
    taught, sha256 = teacher.load_teacher(
        str(recipe.teacher),
        recipe.teacher_model,
        block=recipe.block,
        patch=embedder.patch,
        progress=not job.quiet,
    )
    # bfloat16 leaves the tokens what they are to two digits and halves the time.
    taught.to(device, torch.bfloat16)
    mean, std, clip_mean, clip_std = (
        torch.tensor(value).view(3, 1, 1) for value in (tiling.mean, tiling.std, teacher.MEAN, teacher.STD)
    )

    def told(x: Tensor) -> Tensor:
        pixels = (x * std + mean - clip_mean) / clip_std
        tokens: Tensor = taught(pixels.to(device, torch.bfloat16))
        return tokens

    def look(x: Tensor) -> View:
        return embedder.cells(_laid(x, device)), told(x)

    def keep(x: Tensor) -> View:
        return (x * std + mean).mul(255).round().to(torch.uint8), told(x)

    key = f"{key} ImageNet {sha256} {recipe.teacher_model} {recipe.block}"
    if recipe.trunk is not None:
        return Sight(key=f"{key} pixels", tiling=tiling, look=keep)
    return Sight(key=key, tiling=tiling, look=look)


def _tuned(
    job: Job,
    recipe: Recipe,
    embedder: DistilledEmbedder,
    tiling: Tiling,
    slices: Mapping[str, Sequence[Sample]],
    versions: Sequence[Mapping[str, Sequence[View]]],
    key: str,
    machine: Any,
) -> tuple[list[dict[str, list[View]]], float, bool]:
    """Fine-tune the trunk; returns the versions, of pixels before, as it sees them, then what `tune` does."""
    assert recipe.trunk is not None  # noqa: S101 - asked only where there is one
    first = cells_of(embedder, tiling, versions[:1])[0]
    embedder.cpu()
    fit_map(embedder, [(v[0], v[1]) for s in slices["fit"] for v in first[s.sha256]], recipe.ridge)
    embedder.to(machine.device)
    learn = [v for s in slices["fit"] for seen in versions for v in seen[s.sha256]]
    held = [v for s in slices["validation"] for v in versions[0][s.sha256]]
    within = job.within("trunk")
    within.out.mkdir(exist_ok=True)
    found = tune(embedder, tiling, learn, held, recipe.trunk, within, key, machine)
    if recipe.half:
        embedder.trunk.half().float()
    return cells_of(embedder, tiling, versions), *found


def _laid(x: Tensor, device: str) -> Tensor:
    return x.to(device).contiguous(memory_format=torch.channels_last)


def _tokens(embedder: PatchEmbedder) -> Callable[[View], Tensor]:
    """What makes tokens, (n, dim), of a view."""
    if isinstance(embedder, DistilledEmbedder):

        def mapped(view: View) -> Tensor:
            with torch.inference_mode():
                grid: Tensor = embedder.map(embedder.context(view[0].float()[None]))[0]
            return grid.flatten(1).T.clone()

        return mapped
    return lambda view: view[0].flatten(1).T


def _learn(
    job: Job,
    recipe: Recipe,
    head: SignatureHead,
    slices: Mapping[str, Sequence[Sample]],
    pupils: Sequence[Sequence[Tensor]],
    held: Sequence[Tensor],
    key: str,
    machine: Any,
) -> tuple[SignatureHead, Outcome]:
    """Maximise J over phi and the bandwidth, then choose the bank.

    Args:
        job: Its ``out`` gets checkpoints and ``metrics.jsonl``.
        recipe: See there.
        head: Untrained.
        slices: By name.
        pupils: Of each image of the fit slice, its versions' tokens.
        held: Tokens of each image of the validation slice.
        key: Of the tokens.
        machine: See `loop.accelerator`.

    Returns:
        The head with its bank, on the CPU, and how the training went.
    """
    fit_slice, validation = slices["fit"], slices["validation"]
    size = len(head.bank)
    photographs = [t for s, own in zip(fit_slice, pupils, strict=True) if not s.generated for t in own]
    tokens = candidates(photographs, size, job.seed)
    draws = Draws(recipe, fit_slice, pupils, job.seed)
    # Kinds that are not learnt from are still judged.
    everything = replace(recipe, mix=replace(recipe.mix, kinds={}))
    unseen = Draws(everything, validation, [[own] for own in held], job.seed)
    truth = np.array([s.generated for s in validation])

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(network, SignatureHead)  # noqa: S101 - for the type checker
        signatures = network.phi(batch.inputs)
        # The kernel's exponent is a small difference of large numbers.
        with torch.autocast(signatures.device.type, enabled=False):
            real, fake = signatures.float().chunk(2)
            return -criterion(real, fake, network.bandwidth, recipe.regulariser)

    def judge(network: nn.Module) -> Mapping[str, float]:
        assert isinstance(network, SignatureHead)  # noqa: S101 - for the type checker
        place = network.bank.device
        made = banked(network, tokens, recipe.bank_rule, half=recipe.half)
        raw = score_sets(made, held)
        scale, offset = calibration.platt(truth, raw)
        losses = [float(loss(made, unseen(step).to(place))) for step in range(HELD_OUT_DRAWS)]
        found = judged(truth, scale * raw + offset)
        # The AUROC of the scores as they are: a slope below 0 must not turn the ranking around.
        return found | {"auroc": auroc(truth, raw), "loss": float(np.mean(losses))}

    outcome = train(
        Trainee(network=head, loss=loss),
        draws,
        judge,
        optimiser=recipe.optimiser,
        schedule=recipe.schedule,
        epoch=-(-len(fit_slice) // recipe.batch),
        # The tokens are in memory: there is nothing for other processes to prepare.
        job=replace(job, workers=0),
        fingerprint=job.fingerprint(key),
        machine=machine,
    )
    made = banked(head, tokens, recipe.bank_rule, half=recipe.half).cpu()
    # What the loop kept is the best validation's; here nothing is chosen by a slice that may calibrate, too.
    return made, replace(outcome, tensors=made.state_dict(), step=outcome.steps)


def _finish(
    job: Job,
    recipe: Recipe,
    slices: Mapping[str, Sequence[Sample]],
    embedder: PatchEmbedder,
    head: SignatureHead,
    outcome: Outcome,
    notes: Sequence[str],
    device: str,
) -> None:
    """Measure, calibrate and write what would be shipped."""
    whole: nn.Module = head if isinstance(embedder, VitEmbedder) else Network(embedder.cpu(), head)
    generated = sum(s.generated for s in job.samples)
    spec = replace(
        recipe.spec(job, recipe.backbone),
        trained_on=f"{job.data}: {len(job.samples) - generated} photographs and {generated} generated images",
    )
    tensors: Mapping[str, Tensor] = whole.state_dict()
    made = MDMF.from_weights(Weights(spec, recipe.shipped(tensors), weights.read_backbone(spec))).to(device)
    how = {"equalise": recipe.equalise, "orientation": recipe.orientation}
    validation = Examined(slices["validation"], **how).raw(made)  # type: ignore[arg-type]
    same = slices["calibration"] is slices["validation"]
    kept = validation if same else Examined(slices["calibration"], **how).raw(made)  # type: ignore[arg-type]
    own = [*recipe.notes, *notes, _by_source(slices["validation"], validation)]
    if same:
        own.append("The validation and the calibration slice are the same images; no step was chosen by them.")
    finish(job, replace(recipe, notes=tuple(own)), spec, tensors, slices, outcome, validation, kept, device)


def _by_source(samples: Sequence[Sample], raw: NDArray[np.float64]) -> str:
    """AUROC of each source's generated images against all photographs, for the card."""
    labels = np.array([s.generated for s in samples])
    sources = np.array([s.source for s in samples])
    found = []
    for source in sorted(set(sources[labels])):
        chosen = ~labels | (sources == source)
        count = int((labels & (sources == source)).sum())
        metric = bootstrap(labels[chosen], raw[chosen])
        found.append(f"{source or 'not named'} {metric} ({count})")
    return f"AUROC on the validation slice by source of the generated images: {'; '.join(found)}."


def _reference(
    job: Job,
    recipe: Recipe,
    slices: Mapping[str, Sequence[Sample]],
    versions: Sequence[Mapping[str, Sequence[View]]],
    key: str,
    machine: Any,
) -> str:
    """Signatures of the teacher's tokens, each number standardised: what a perfect pupil would reach, for the card."""
    learn = [v[1] for s in slices["fit"] for seen in versions for v in seen[s.sha256]]
    sample = torch.cat([grid.float().flatten(1).T for grid in learn[::5]])
    centre, spread = sample.mean(0), sample.std(0) + 1e-4

    def taught(views: Sequence[View]) -> Tensor:
        return ((torch.cat([v[1].float().flatten(1).T for v in views]) - centre) / spread).half()

    pupils = [[taught(seen[s.sha256]) for seen in versions] for s in slices["fit"]]
    held = [taught(versions[0][s.sha256]) for s in slices["validation"]]
    torch.manual_seed(job.seed)
    head = SignatureHead(len(centre), **recipe.network["head"])
    within = job.within("reference")
    within.out.mkdir(exist_ok=True)
    head, _ = _learn(within, recipe, head, slices, pupils, held, f"{key} reference", machine)
    metric = bootstrap([s.generated for s in slices["validation"]], score_sets(head, held))
    return f"Signatures of the teacher's own tokens, learnt alike, have AUROC {metric} on the validation slice."
