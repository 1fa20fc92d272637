"""Does a detector see the edit, or what the editor did to the rest of the picture? `exchange_audit`.

After Inpainting Exchange (arXiv 2602.00192): an inpainted picture went through an autoencoder as a whole; with the
original's pixels put back outside the mask, only what was really generated is left to find.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo import images
from detector_zoo.detector import Localizer
from detector_zoo.errors import DatasetError, ImageError, PluginError
from detector_zoo.evaluation import spectrum
from detector_zoo.evaluation.audits import Audit, Cell, Table
from detector_zoo.evaluation.bootstrap import Figure, Resampling, auroc_of, mean_of
from detector_zoo.evaluation.equalise import reencode
from detector_zoo.evaluation.exchange import KERNEL, exchange, soft_exchange
from detector_zoo.evaluation.in_memory import Loaded, Reader, Watch, abstentions, decided, log_odds
from detector_zoo.evaluation.intervals import Metric, share
from detector_zoo.evaluation.localization import energy_inside, read_mask
from detector_zoo.evaluation.samples import Sample, source_of
from detector_zoo.loading import LoadedDetector

__all__ = ["VERSIONS", "ExchangeAudit", "MapShare", "Spectra", "Version", "exchange_audit"]

Floats = NDArray[np.float64]

VERSIONS = ("original", "inpainted", "exchanged", "soft edges")
"""What is scored of each triple."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One way to edit, against the originals; pictures on which the detector abstains are in the mean log-odds only.

    Attributes:
        auroc: Of edits against originals.
        accuracy: Mean of the two classes' accuracies at the weights' threshold.
        called_generated: Share of edits that it calls generated.
        inconclusive: Edits on which it abstains.
        log_odds: Mean.
        auroc_drop: Of inpainted minus this version, paired by triple, of those whose edits it decides on both times.
        accuracy_drop: Likewise.
    """

    auroc: Metric
    accuracy: Metric
    called_generated: Metric
    inconclusive: int
    log_odds: Metric
    auroc_drop: Metric
    accuracy_drop: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class MapShare:
    """Mean share of the heatmap's positive part inside the mask.

    Attributes:
        inpainted: Of inpainted pictures' maps.
        exchanged: Of exchanged ones'.
        area: Share of the pixels: what a map that says nothing has.
    """

    inpainted: Metric
    exchanged: Metric
    area: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectra:
    """The spectral test.

    Attributes:
        images: Triples large enough.
        frequencies: Centres of the rings, cycles a pixel.
        power: By version the mean over images of the radial power, dB.
        loss_inpainted: Power from 0.25 cycles a pixel on that inpainting took from the whole picture, mean dB.
        loss_exchanged: The same for exchanged pictures.
        correlation: Pearson's r of reconstruction error and local high-frequency energy outside the mask, mean.
        correlated: Triples in it; where an edit changed nothing outside the mask there is no r.
    """

    images: int
    frequencies: tuple[float, ...]
    power: dict[str, tuple[float, ...]]
    loss_inpainted: Metric
    loss_exchanged: Metric
    correlation: Metric
    correlated: int


@dataclass(frozen=True, kw_only=True)
class ExchangeAudit(Audit):
    """Result of `exchange_audit`.

    Attributes:
        triples: That are in the figures.
        already: Edits left out, as they are exchanges already.
        quality: Of the JPEG that every version was given last, None for none.
        original: Mean log-odds of the originals.
        versions: ``inpainted``, ``exchanged``, ``soft edges``.
        maps: None for a detector that does not localize.
        spectra: None where no picture is large enough.
        formats: How many triples have which formats, ``original > edited``.
    """

    name: ClassVar[str] = "exchange"
    triples: int
    already: int
    quality: int | None
    original: Metric
    versions: dict[str, Version]
    maps: MapShare | None
    spectra: Spectra | None
    formats: dict[str, int]

    def tables(self) -> list[Table]:
        """Versions, map, spectra."""
        head = ("version", "AUROC", "drop", "accuracy", "drop", "called generated", "inconclusive", "mean log-odds")
        rows: list[tuple[Cell, ...]] = [("original", None, None, None, None, None, None, self.original)]
        rows += [
            (name, v.auroc, v.auroc_drop, v.accuracy, v.accuracy_drop, v.called_generated, v.inconclusive, v.log_odds)
            for name, v in self.versions.items()
        ]
        history = "compared as decoded" if self.quality is None else f"each last given a JPEG of quality {self.quality}"
        formats = ", ".join(f"{count} {pair}" for pair, count in self.formats.items())
        note = (
            f"{self.triples} {'triple' if self.triples == 1 else 'triples'}, {history}; files: {formats}; exchanges "
            f"already, left out: {self.already}. Drops are from the inpainted version, paired. "
            f"Soft edges: the mask blurred by a {KERNEL}x{KERNEL} Gaussian as alpha; if edges were the clue, they "
            "would change the score."
        )
        found = [Table("Exchange", head, tuple(rows), note)]
        if self.maps:
            shares: tuple[tuple[Cell, ...], ...] = (
                ("inpainted", self.maps.inpainted),
                ("exchanged", self.maps.exchanged),
                ("area of the mask", self.maps.area),
            )
            found.append(Table("Share of the heatmap inside the mask", ("", ""), shares))
        if self.spectra:
            lines: tuple[tuple[Cell, ...], ...] = (
                (f"inpainted: power lost from {spectrum.HIGH} cycles/pixel on, dB", self.spectra.loss_inpainted),
                ("exchanged: the same, dB", self.spectra.loss_exchanged),
                ("error against local detail, Pearson r", self.spectra.correlation),
            )
            note = f"Triples large enough: {self.spectra.images}; r is defined in {self.spectra.correlated} of them."
            found.append(Table("Spectral test", ("", ""), lines, note))
        return [*found, self.origin.table()]


@dataclass(slots=True)
class _Gathered:
    """What the triples tell beside their scores, by sample."""

    power: dict[int, list[Floats]] = field(default_factory=dict)
    r: dict[int, float] = field(default_factory=dict)
    shares: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    formats: dict[int, str] = field(default_factory=dict)


def exchange_audit(
    samples: Sequence[Sample],
    detector: LoadedDetector,
    *,
    quality: int | None = None,
    maps: bool = True,
    data: str = "",
    seed: int = 0,
    resamples: int = 2000,
    skip_bad: bool = False,
    watch: Watch = iter,
) -> ExchangeAudit:
    """Score originals, inpainted and exchanged pictures, all of them turned upright by EXIF.

    Args:
        samples: Generated ones with an original and a mask are used; those that are the original's outside the mask,
            bit for bit, are exchanges already and left out.
        detector: Its threshold is the one of the accuracies.
        quality: JPEG quality to give every version last, 4:2:0; None compares the decoded pixels. Worth it where
            originals and edits are of different formats, which is told in the result.
        maps: Draw the heatmaps of a detector that localizes.
        data: What to call the data set.
        seed: Of the bootstrap, which draws triples.
        resamples: Of the bootstrap.
        skip_bad: Record triples that cannot be used and go on.
        watch: Sees the samples pass.

    Raises:
        DatasetError: There is no triple, or none that can be used.
        ImageError: A file cannot be read, and bad ones are not skipped.
    """
    triples = [s for s in samples if s.generated and s.original is not None and s.mask is not None]
    if not triples:
        raise DatasetError("the data set has no triple: an edit with its original and its mask")
    reader = Reader(triples, skip_bad, watch)
    gathered = _Gathered()
    already: list[int] = []
    localizes = maps and isinstance(detector.detector, Localizer)

    def pictures() -> Iterator[tuple[tuple[int, int], Image.Image]]:
        for item in reader:
            try:
                made = _versions(item, quality, gathered)
            except (DatasetError, ImageError) as error:
                if not skip_bad:
                    raise
                reader.fail(item.index, str(error))
                continue
            if made is None:
                already.append(item.index)
                continue
            versions, mask = made
            if localizes:
                try:
                    inpainted, exchanged = (energy_inside(detector.map_of(p), mask) for p in versions[1:3])
                except PluginError as error:
                    reader.fail(item.index, str(error))
                    continue
                gathered.shares[item.index] = inpainted, exchanged, float(mask.mean())
            for row, picture in enumerate(versions):
                yield (row, item.index), picture

    scores, errors = log_odds(detector, pictures(), (len(VERSIONS), len(triples)))
    causes = {index: cause for (_, index), cause in errors.items()}
    for index, cause in causes.items():
        reader.fail(index, cause)
    for index in already:
        reader.leave_out(index)
    used = sorted(reader.hashes)
    if not used and already:
        raise DatasetError("every edit left the rest of its picture alone: there is nothing to exchange")
    if not used:
        raise DatasetError("no triple could be scored", hint=next(iter(reader.failures), None))
    resampling = Resampling(
        [True] * len(used), [source_of(triples[index]) for index in used], resamples=resamples, seed=seed
    )
    scores = scores[:, used]
    formats = [gathered.formats[index] for index in used]
    origin = reader.origin(detector, data, seed, resamples, inconclusive=abstentions(detector, scores[:2]))
    return ExchangeAudit(
        origin=replace(origin, real=len(used)),
        triples=len(used),
        already=len(already),
        quality=quality,
        original=resampling.intervals(mean_of(scores[0]))[0],
        versions={name: _version(scores, row, detector, resampling) for row, name in _EDITS},
        maps=_map_share([gathered.shares[index] for index in used], resampling) if localizes else None,
        spectra=_spectra(gathered, used, resampling),
        formats={pair: formats.count(pair) for pair in sorted(set(formats))},
    )


_EDITS = tuple(enumerate(VERSIONS))[1:]


def _versions(
    item: Loaded, quality: int | None, gathered: _Gathered
) -> tuple[list[Image.Image], NDArray[np.bool_]] | None:
    """The four pictures of a triple, and its mask; None where the edit is an exchange already."""
    sample = item.sample
    assert sample.original is not None  # noqa: S101  (only triples are read)
    source = images.decode(sample.original)
    mask = read_mask(sample, item.decoded, "apply")
    original, edited = (np.asarray(decoded.oriented("apply")) for decoded in (source, item.decoded))
    if original.shape != edited.shape:
        sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (edited, original)]
        raise DatasetError(f"{sample.path}: {sizes[0]}, its original {sizes[1]}")
    exchanged = exchange(original, edited, mask)
    if np.array_equal(exchanged, edited):
        return None
    gathered.formats[item.index] = f"{source.format} > {item.decoded.format}"
    gathered.r[item.index] = spectrum.error_correlation(original, edited, mask)
    if min(mask.shape) >= 2 * spectrum.BINS:
        gathered.power[item.index] = [spectrum.radial_power(pixels) for pixels in (original, edited, exchanged)]
    found = [Image.fromarray(p) for p in (original, edited, exchanged, soft_exchange(original, edited, mask))]
    return (found if quality is None else [reencode(picture, "jpeg", quality) for picture in found]), mask


def _version(scores: Floats, row: int, detector: LoadedDetector, resampling: Resampling) -> Version:
    known = decided(detector, scores)
    both = np.isfinite(known[1]) & np.isfinite(known[row])
    edits, same, inpainted = known[row], np.where(both, known[row], np.nan), np.where(both, known[1], np.nan)

    def called(log_odds: Floats) -> Floats:
        return np.where(np.isfinite(log_odds), log_odds > detector.threshold, np.nan)

    def accuracy(edits: Floats) -> Figure:
        real, fake = mean_of(1 - called(known[0])), mean_of(called(edits))
        return Figure(
            lambda weights: (real.of(weights) + fake.of(weights)) / 2,
            share,
            real.rests_on + fake.rests_on,
            real.there | fake.there,
        )

    figures = resampling.intervals(
        _area(known[0], edits),
        accuracy(edits),
        mean_of(called(edits), rule=share),
        mean_of(scores[row]),
        _area(known[0], inpainted) - _area(known[0], same),
        accuracy(inpainted) - accuracy(same),
    )
    names = ("auroc", "accuracy", "called_generated", "log_odds", "auroc_drop", "accuracy_drop")
    return Version(inconclusive=abstentions(detector, scores[row]), **dict(zip(names, figures, strict=True)))


def _area(originals: Floats, edits: Floats) -> Figure:
    """AUROC of edits against originals, (N,) each by triple; NaN leaves one out."""
    pairs = auroc_of(np.repeat([False, True], len(edits)), np.concatenate([originals, edits]))
    rests_on = np.isfinite(originals), np.isfinite(edits)
    return Figure(lambda weights: pairs.of(np.hstack([weights, weights])), share, rests_on, rests_on[0] | rests_on[1])


def _map_share(shares: Sequence[tuple[float, float, float]], resampling: Resampling) -> MapShare:
    inpainted, exchanged, area = resampling.intervals(
        *(mean_of(column, rule=share) for column in zip(*shares, strict=True))
    )
    return MapShare(inpainted=inpainted, exchanged=exchanged, area=area)


def _spectra(gathered: _Gathered, used: Sequence[int], resampling: Resampling) -> Spectra | None:
    measured = [index for index in used if index in gathered.power]
    if not measured:
        return None
    power = np.array([gathered.power[index] for index in measured])
    losses = np.full((2, len(used)), np.nan)
    for place, index in enumerate(used):
        if index not in gathered.power:
            continue
        original, *others = gathered.power[index]
        losses[:, place] = [spectrum.high_frequency_loss(other, original) for other in others]
    r = np.array([gathered.r[index] for index in used])
    inpainted, exchanged, correlation = resampling.intervals(mean_of(losses[0]), mean_of(losses[1]), mean_of(r))
    # Black pictures have no power at all; 1e-20 lies far below a grey level's.
    decibels = 10 * np.log10(np.maximum(power, 1e-20)).mean(0)
    return Spectra(
        images=len(measured),
        frequencies=tuple(spectrum.frequencies().tolist()),
        power={name: tuple(row.tolist()) for name, row in zip(VERSIONS[:3], decibels, strict=True)},
        loss_inpainted=inpainted,
        loss_exchanged=exchanged,
        correlation=correlation,
        correlated=int(np.isfinite(r).sum()),
    )
