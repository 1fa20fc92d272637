"""Batches as a pure function of the seed and their number: resumed runs and any number of workers see the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.equalise import SIDES
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.augment import Augmentation, Picture
from detector_zoo.training.pictures import is_webp, window
from detector_zoo.training.splits import hashed

__all__ = ["Batch", "ImageBatches", "Mix", "probabilities", "stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a batch is made of.

    Attributes:
        generated: Share of generated images.
        pairs: Share of the generated images that come with the very photograph that they were made from, both under
            one augmentation. That photograph counts among the real ones.
        kinds: How often a kind of generated image (`Sample.kind`) is drawn beside the others, 1 where it is not
            named; 0 leaves it out.
        balance: A source, and among generated images a generator, of n images is drawn in proportion to
            n ** balance: 1 draws images alike, 0 sources alike.
    """

    generated: float = 0.5
    pairs: float = 0.0
    kinds: Mapping[str, float] = field(default_factory=dict)
    balance: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.generated < 1 and 0 <= self.pairs <= 1 and 0 <= self.balance <= 1):
            raise ValueError("generated, pairs and balance are shares between 0 and 1")
        if self.pairs and self.generated > 0.5:
            raise ValueError("with pairs, generated is at most 0.5: every one brings a real image along")


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step learns from.

    Attributes:
        inputs: (N, 3, S, S) uint8 pixels, or (N, D) float32 features.
        labels: (N,) float32, 1 for generated; or whatever else a method's own loss compares with.
        masks: (N, S, S) float32, 1 where a pixel is generated: all 0 for a real image, all 1 for a generated one
            without a mask. None with features.
    """

    inputs: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """On a device."""
        moved = (None if x is None else x.to(device, non_blocking=True) for x in (self.inputs, self.labels, self.masks))
        return Batch(*moved)  # type: ignore[arg-type]


class ImageBatches(torch.utils.data.Dataset[Batch]):
    """Augmented crops of both classes, classes, kinds and sources balanced.

    Args:
        samples: The fit slice.
        augmentation: Ends in squares of one size.
        mix: What a batch is made of.
        size: N.
        seed: Of every draw.
        equalise: See `detector_zoo.training.pictures.window`.
        sides: See there.
        orientation: See there.
        shard: Index and number of the processes that share a batch; each gets its part of it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        augmentation: Augmentation,
        mix: Mix,
        *,
        size: int,
        seed: int,
        equalise: bool = True,
        sides: tuple[int, int] = SIDES,
        orientation: str = "apply",
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self._augmentation, self._size, self._seed, self._shard = augmentation, size, seed, shard
        self._window = {"equalise": equalise, "sides": sides, "orientation": orientation}
        kept = [s for s in samples if not s.generated or mix.kinds.get(s.kind, 1.0) > 0]
        self.real = [s for s in kept if not s.generated]
        self.generated = [s for s in kept if s.generated]
        self._paired = [(s, o) for s in self.generated if (o := _original(s)) is not None] if mix.pairs else []
        if mix.pairs and not self._paired:
            raise DatasetError(
                "the recipe asks for aligned pairs, and no generated image has its original beside it in one size",
                hint="zoo data reconstruct makes pairs; or --set mix.pairs=0",
            )
        if not self.real or not self.generated:
            raise DatasetError(f"{len(self.real)} real and {len(self.generated)} generated images to learn from")
        self._p_real, self._p_generated = probabilities(self.real, mix), probabilities(self.generated, mix)
        self._p_paired = probabilities([made for made, _ in self._paired], mix) if self._paired else None
        fakes = max(1, round(size * mix.generated))
        pairs = round(fakes * mix.pairs)
        self._counts = pairs, size - fakes - pairs, fakes - pairs
        if self._counts[1] < 0:
            raise DatasetError(f"a batch of {size} has no room for {pairs} pairs and {fakes - pairs} generated images")

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, or this process's part of it."""
        rng = np.random.default_rng((self._seed, step))
        pairs, reals, fakes = self._counts
        slots: list[tuple[Sample, int, bool]] = []
        if self._p_paired is not None:
            for index, chosen in enumerate(rng.choice(len(self._paired), pairs, p=self._p_paired)):
                made, original = self._paired[chosen]
                shrink = is_webp(made) or is_webp(original)
                slots += [(original, index, shrink), (made, index, shrink)]
        for pool, p, count in ((self.real, self._p_real, reals), (self.generated, self._p_generated, fakes)):
            for chosen in rng.choice(len(pool), count, p=p):
                slots.append((pool[chosen], len(slots), is_webp(pool[chosen])))
        rank, world = self._shard
        return _collate([self._picture(slot, step) for slot in slots[rank::world]])

    def __len__(self) -> int:
        """Batches of which every image is drawn once on average."""
        return -(-(len(self.real) + len(self.generated)) // self._size)

    def _picture(self, slot: tuple[Sample, int, bool], step: int) -> tuple[Picture, Sample]:
        sample, index, shrink = slot
        seed = (self._seed, step, index)
        picture = window(sample, (*seed, 0), shrink=shrink, **self._window)  # type: ignore[arg-type]
        return self._augmentation(picture, (*seed, 1)), sample


def stream(batches: Callable[[int], Batch], start: int, stop: int, workers: int) -> Iterator[tuple[int, Batch]]:
    """Batches ``start`` to ``stop - 1`` with their numbers, in order, prepared by that many processes (0: this one)."""
    loader = torch.utils.data.DataLoader(
        _Calls(batches),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        worker_init_fn=_one_thread,
    )
    yield from enumerate(loader, start)


class _Calls(torch.utils.data.Dataset[Batch]):
    def __init__(self, batches: Callable[[int], Batch]) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> Batch:
        return self._batches(step)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _collate(drawn: Sequence[tuple[Picture, Sample]]) -> Batch:
    sizes = {picture.image.size for picture, _ in drawn}
    if len(sizes) > 1:
        raise DatasetError(
            f"the augmentation leaves images of {len(sizes)} sizes, {min(sizes)} to {max(sizes)}",
            hint="end it with random_crop or random_resized_crop",
        )
    inputs = torch.from_numpy(np.stack([np.asarray(picture.image) for picture, _ in drawn])).permute(0, 3, 1, 2)
    masks = np.stack([_mask(picture, sample) for picture, sample in drawn])
    labels = [float(sample.generated) for _, sample in drawn]
    return Batch(inputs.contiguous(), torch.tensor(labels), torch.from_numpy(masks))


def _mask(picture: Picture, sample: Sample) -> NDArray[np.float32]:
    width, height = picture.image.size
    if sample.generated and picture.mask is not None:
        return np.asarray(picture.mask, np.float32) / np.float32(255)
    return np.full((height, width), float(sample.generated), np.float32)


def _original(sample: Sample) -> Sample | None:
    """The photograph that a generated image was made from, where the two are of one size."""
    if sample.original is None:
        return None
    try:
        with Image.open(sample.original) as real, Image.open(sample.path) as made:
            same = real.size == made.size
    except OSError as error:
        raise DatasetError(f"{sample.original} or {sample.path}: {error}") from error
    if not same:
        return None
    photo = Sample(path=sample.original, label="real", kind="photo", group=sample.group, source=sample.source)
    return hashed(photo)


def probabilities(samples: Sequence[Sample], mix: Mix) -> NDArray[np.float64]:
    """How often each of a class's samples is drawn, (N,), in sum 1.

    A kind's share is its weight in the mix; within it sources, and generators of a source, share by their count **
    balance. Photographs are of one kind.
    """
    kinds = [s.kind if s.generated else "" for s in samples]
    keys = [(kind, s.source, s.generator) for kind, s in zip(kinds, samples, strict=True)]
    counts = Counter(keys)
    shares: dict[str, float] = defaultdict(float)
    for key, count in counts.items():
        shares[key[0]] += count**mix.balance
    weights = [1.0 if not s.generated else mix.kinds.get(s.kind, 1.0) for s in samples]
    p = np.array([w * counts[k] ** (mix.balance - 1) / shares[k[0]] for w, k in zip(weights, keys, strict=True)])
    normalised: NDArray[np.float64] = p / p.sum()
    return normalised
