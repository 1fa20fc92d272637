"""Does the heatmap lie on the edit? Pixel metrics against masks, with intervals over images: `localization`.

The border of a mask is not counted, as in TruFor's evaluation (Guillaro et al., CVPR 2023, arXiv 2212.10957): a pixel
counts as edited where the mask, eroded by a square of `ERODE` pixels, still is, as untouched where the mask, dilated
by one of `DILATE` pixels, is not, and in between it is left out of every metric. At the picture's own border the
squares are cut off. TruFor's code also takes the better F1 of a map and its inverse; here a map is never inverted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from detector_zoo import images
from detector_zoo.detector import Localizer
from detector_zoo.errors import DatasetError, ImageError, PluginError
from detector_zoo.evaluation import metrics
from detector_zoo.evaluation.audits import Audit, Cell, Table
from detector_zoo.evaluation.bootstrap import Resampling, mean_of
from detector_zoo.evaluation.in_memory import Reader, Watch
from detector_zoo.evaluation.intervals import Metric, share
from detector_zoo.evaluation.samples import Sample, source_of
from detector_zoo.loading import LoadedDetector

__all__ = [
    "DILATE",
    "ERODE",
    "Localization",
    "MapFigures",
    "energy_inside",
    "localization",
    "measure_map",
    "read_mask",
    "regions",
]

ERODE, DILATE = 15, 11
"""Sides of the squares that erode and dilate a mask, pixels: TruFor's."""

_RULE = "the middle of the map's own range"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFigures:
    """One heatmap against one mask; NaN where a figure is not defined.

    Attributes:
        iou: Intersection over union of the edited pixels, at the threshold.
        oracle_iou: At the threshold that is best for this image: an upper bound, no result.
        ap: Average precision of the pixels.
        auroc: Of the pixels.
        energy: Share of the map's positive part that lies on edited pixels.
        area: Share of the counted pixels that are edited: the energy of a map that says nothing.
    """

    iou: float
    oracle_iou: float
    ap: float
    auroc: float
    energy: float
    area: float


@dataclass(frozen=True, kw_only=True)
class Localization(Audit):
    """Result of `localization`: means over images.

    Attributes:
        threshold: At which a pixel is called edited.
        images: That are in the figures.
        too_small: Images whose mask has no pixel left once eroded, or no untouched one once dilated.
        miou: Mean over images of the edited pixels' IoU; the background's is not averaged in.
        oracle_miou: The same, each image at its own best threshold.
        ap: Pixel average precision.
        auroc: Pixel AUROC.
        energy: Share of the map's positive part inside the mask.
        area: Share of the pixels inside the mask.
    """

    name: ClassVar[str] = "localization"
    threshold: str
    images: int
    too_small: int
    miou: Metric
    oracle_miou: Metric
    ap: Metric
    auroc: Metric
    energy: Metric
    area: Metric

    def tables(self) -> list[Table]:
        """The figures."""
        rows: tuple[tuple[Cell, ...], ...] = (
            (f"mIoU, threshold {self.threshold}", self.miou),
            ("mIoU, oracle (best threshold of each image)", self.oracle_miou),
            ("pixel AP", self.ap),
            ("pixel AUROC", self.auroc),
            ("share of energy inside the mask", self.energy),
            ("share of area inside the mask", self.area),
        )
        note = (
            f"Means over {self.images} images. Pixels near a mask's border are not counted (eroded by {ERODE}, dilated "
            f"by {DILATE} pixels, as TruFor does); {self.too_small} images left out, as nothing of the mask remained."
        )
        return [Table("Localization", ("", ""), rows, note), self.origin.table()]


def regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels that count as edited and those that count as untouched, (H, W) each; the rest is border."""
    return _counts(mask, ERODE) == _counts(np.ones_like(mask), ERODE), _counts(mask, DILATE) == 0


def _counts(mask: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """True pixels in the square around each pixel, as far as it lies in the picture."""
    height, width = mask.shape
    total = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    (top, bottom), (left, right) = (
        (np.clip(np.arange(n) - side // 2, 0, n), np.clip(np.arange(n) + side // 2 + 1, 0, n)) for n in (height, width)
    )
    found: NDArray[np.int64] = (
        total[np.ix_(bottom, right)]
        - total[np.ix_(top, right)]
        - total[np.ix_(bottom, left)]
        + total[np.ix_(top, left)]
    )
    return found


def measure_map(
    heat: NDArray[np.float32], mask: NDArray[np.bool_], threshold: float | None = None
) -> MapFigures | None:
    """Compare one map with one mask.

    Args:
        heat: (H, W), finite, higher where the image looks generated.
        mask: (H, W), true where the edit is.
        threshold: In the map's unit, a pixel above it is called edited; None for the middle between the map's
            smallest and largest value, which needs no mask to know.

    Returns:
        None where no pixel counts as edited, or none as untouched.

    Raises:
        ValueError: The sizes differ, or the map holds something other than finite numbers.
    """
    if heat.shape != mask.shape:
        raise ValueError(f"the map is {heat.shape}, the mask {mask.shape}")
    if not np.isfinite(heat).all():
        raise ValueError("the map holds something other than finite numbers")
    edited, untouched = regions(mask)
    if not edited.any() or not untouched.any():
        return None
    counted = edited | untouched
    values, labels = heat[counted].astype(np.float64), edited[counted]
    cut = (float(heat.min()) + float(heat.max())) / 2 if threshold is None else threshold
    positive = np.clip(values, 0, None)
    return MapFigures(
        iou=_iou(labels, values > cut),
        oracle_iou=_best_iou(labels, values),
        ap=metrics.average_precision(labels, values),
        auroc=metrics.auroc(labels, values),
        energy=float(positive[labels].sum() / positive.sum()) if positive.any() else float("nan"),
        area=float(labels.mean()),
    )


def energy_inside(heat: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Share of a map's positive part that lies inside the mask, its border included; NaN for a map without any."""
    positive = np.clip(heat.astype(np.float64), 0, None)
    return float(positive[mask].sum() / positive.sum()) if positive.any() else float("nan")


def _iou(labels: NDArray[np.bool_], called: NDArray[np.bool_]) -> float:
    return float((labels & called).sum() / (labels | called).sum())


def _best_iou(labels: NDArray[np.bool_], values: NDArray[np.float64]) -> float:
    order = np.argsort(-values, kind="stable")
    hits = labels[order].cumsum()
    iou = hits / (labels.sum() + np.arange(1, len(hits) + 1) - hits)
    ends = np.append(np.diff(values[order]) != 0, True)  # equal values are called together
    return float(iou[ends].max())


def read_mask(sample: Sample, decoded: images.DecodedImage, policy: str) -> NDArray[np.bool_]:
    """A sample's mask, turned as the detector sees the image.

    Args:
        sample: With a mask.
        decoded: Its image.
        policy: The detector's, on EXIF orientation. A mask as large as the stored picture is turned with it, one
            that fits only the upright picture is taken as it is.

    Returns:
        (H, W), true above 127.

    Raises:
        DatasetError: There is no mask, it is of another size, or it is empty.
        ImageError: It cannot be read.
    """
    if sample.mask is None:
        raise DatasetError(f"{sample.path}: no mask")
    found = images.decode(sample.mask).image
    wanted = decoded.oriented(policy).size
    if found.size == decoded.image.size:
        found = images.DecodedImage(found, "", "", decoded.orientation, "").oriented(policy)
    if found.size != wanted:
        raise DatasetError(f"{sample.mask}: {found.width} x {found.height}, the image {wanted[0]} x {wanted[1]}")
    mask = np.asarray(found.convert("L")) > 127
    if not mask.any():
        raise DatasetError(f"{sample.mask}: empty, nothing in it is above 127")
    return mask


def localization(
    samples: Sequence[Sample],
    detector: LoadedDetector,
    *,
    threshold: float | None = None,
    data: str = "",
    seed: int = 0,
    resamples: int = 2000,
    skip_bad: bool = False,
    watch: Watch = iter,
) -> Localization:
    """Compare a detector's heatmaps with the masks of local edits.

    Args:
        samples: Those with a mask are used.
        detector: One that localizes.
        threshold: Of the heatmap, in its unit; None for the middle of each map's own range.
        data: What to call the data set.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        skip_bad: Record images and masks that cannot be used and go on.
        watch: Sees the samples pass.

    Raises:
        DatasetError: No sample has a mask, or no mask can be used.
        ImageError: A file cannot be read, and bad ones are not skipped.
        PluginError: The detector does not localize.
    """
    if not isinstance(detector.detector, Localizer):
        raise PluginError(f"{detector.name} has no heatmap", hint="zoo list --capability localize")
    masked = [sample for sample in samples if sample.mask is not None]
    if not masked:
        raise DatasetError("no image of the data set has a mask")
    reader = Reader(masked, skip_bad, watch)
    found: dict[int, MapFigures] = {}
    too_small = 0
    for index, heat, mask in _maps(reader, detector):
        figures = measure_map(heat, mask, threshold)
        if figures is None:
            too_small += 1
        else:
            found[index] = figures
    if not found:
        raise DatasetError("no mask could be compared with a map", hint=next(iter(reader.failures), None))
    chosen = [masked[index] for index in found]
    resampling = Resampling(
        [True] * len(chosen), [source_of(sample) for sample in chosen], resamples=resamples, seed=seed
    )
    names = ("iou", "oracle_iou", "ap", "auroc", "energy", "area")
    means = [mean_of([getattr(figures, name) for figures in found.values()], rule=share) for name in names]
    iou, oracle, ap, auroc, energy, area = resampling.intervals(*means)
    return Localization(
        origin=reader.origin(detector, data, seed, resamples),
        threshold=_RULE if threshold is None else f"{threshold:g}",
        images=len(found),
        too_small=too_small,
        miou=iou,
        oracle_miou=oracle,
        ap=ap,
        auroc=auroc,
        energy=energy,
        area=area,
    )


def _maps(reader: Reader, detector: LoadedDetector) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
    for item in reader:
        try:
            mask = read_mask(item.sample, item.decoded, detector.orientation_policy)
        except (DatasetError, ImageError) as error:
            if not reader.skip_bad:
                raise
            reader.fail(item.index, str(error))
            continue
        try:
            heat = detector.heatmap(item.decoded)
        except PluginError as error:
            reader.fail(item.index, str(error))
            continue
        if not np.isfinite(heat).all():
            reader.fail(item.index, "the heatmap holds something other than finite numbers")
            continue
        yield item.index, heat, mask
