"""Everything that the page and the HTTP interface show, without either: `Analyst`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from detector_zoo import __version__, images
from detector_zoo.app import cautions, facts
from detector_zoo.app.answers import Agreement, Analysis, Exchanged, Heat, Launderings, Served, Survival, Verdict
from detector_zoo.detector import Localizer
from detector_zoo.errors import DatasetError, UnknownDetectorError, ZooError
from detector_zoo.evaluation.exchange import exchange
from detector_zoo.evaluation.in_memory import as_decoded
from detector_zoo.evaluation.perturbations import parse
from detector_zoo.evaluation.provenance import environment
from detector_zoo.loading import LoadedDetector, load_all
from detector_zoo.weight_specs import suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from detector_zoo.detector import Score

__all__ = ["PERTURBATIONS", "Analyst"]

PERTURBATIONS = ("jpeg:75", "webp:75", "resize_bicubic:0.5", "blur:1")
"""What `Analyst.launder` tries unless told otherwise."""


class Analyst:
    """Detectors, each loaded once, and what can be asked of them. Methods may be called from many threads.

    At most ``concurrency`` analyses run at a time, further callers wait; forward passes go one by one, because torch
    spreads one over all cores already and a heatmap's hooks in a network that two detectors share must not meet the
    other's pass.

    Args:
        detectors: Names, ``method`` or ``method.tag``; ``all`` for every detector whose weights are at hand.
        device: As `detector_zoo.load` takes it.
        max_pixels: Refuse larger images.
        concurrency: Analyses at a time.

    Attributes:
        skipped: A line for each detector that ``all`` left out, and why.

    Raises:
        UnknownDetectorError: No such detector or tag.
        WeightsError: Weights cannot be had.
        PluginError: A plugin cannot be loaded.
    """

    def __init__(
        self,
        detectors: Sequence[str] = ("all",),
        *,
        device: str = "auto",
        max_pixels: int = images.DEFAULT_MAX_PIXELS,
        concurrency: int = 2,
    ) -> None:
        skipped: list[str] = []
        loaded = load_all(detectors, skipped, device=device, max_pixels=max_pixels)
        self.skipped: tuple[str, ...] = tuple(skipped)
        self.max_pixels = max_pixels
        self._loaded = {detector.name: detector for detector in loaded}
        self._slots = threading.BoundedSemaphore(concurrency)
        self._forward = threading.Lock()
        found = environment()
        # The platform says what the server runs on, which is nobody's business.
        del found["platform"]
        self.versions = {**found, "detector-zoo": __version__}

    @property
    def detectors(self) -> tuple[Served, ...]:
        """What is loaded, in the order asked for."""
        return tuple(_served(detector) for detector in self._loaded.values())

    def check(self, detectors: Sequence[str] | None) -> list[str]:
        """Full names of the detectors asked for, each once; all of them for None or none.

        Raises:
            UnknownDetectorError: One of them is not loaded.
        """
        return [detector.name for detector in self._chosen(detectors)]

    def analyse(self, data: bytes, name: str = "", detectors: Sequence[str] | None = None) -> Analysis:
        """Score a file and say what is known about it.

        Args:
            data: The file's bytes.
            name: As its owner calls it; only shown, and its extension compared with the content.
            detectors: ``method`` or ``method.tag`` of those that are loaded; None for all of them.

        Raises:
            ImageError: The bytes are not a picture that can be scored.
            UnknownDetectorError: A detector is not loaded.
        """
        chosen = self._chosen(detectors)
        with self._slots:
            decoded = self._decode(data, name)
            verdicts = tuple(self._verdict(detector, decoded) for detector in chosen)
            found = facts.read(data, decoded, name)
        return Analysis(
            name=found.name,
            sha256=decoded.sha256,
            facts=found,
            verdicts=verdicts,
            agreement=Agreement.of(verdicts),
            do_not_conclude=cautions.write(found, list(zip(chosen, verdicts, strict=True))),
            versions=self.versions,
        )

    def heatmap(self, data: bytes, detector: str, name: str = "") -> Heat:
        """Where a detector finds its evidence.

        Args:
            data: The file's bytes.
            detector: ``method`` or ``method.tag``.
            name: For messages.

        Raises:
            PluginError: The detector does not localize, or failed.
            ImageError: The bytes are not a picture that can be scored.
            UnknownDetectorError: The detector is not loaded.
        """
        (chosen,) = self._chosen([detector])
        with self._slots:
            image = self._decode(data, name).oriented(chosen.orientation_policy)
            with self._forward:
                return Heat(chosen.map_of(image), image)

    def launder(
        self,
        data: bytes,
        detectors: Sequence[str] | None = None,
        perturbations: Sequence[str] = PERTURBATIONS,
        name: str = "",
    ) -> Launderings:
        """Would the verdict survive?

        Args:
            data: The file's bytes.
            detectors: As in `analyse`.
            perturbations: ``name`` or ``name:number``, as `zoo audit laundering` takes them; applied to the decoded
                picture, turned as the detector sees it.
            name: For messages.

        Raises:
            ValueError: A perturbation is not known, or does not take its number.
            ImageError: The bytes are not a picture that can be scored.
            UnknownDetectorError: A detector is not loaded.
            PluginError: A plugin's perturbation failed.
        """
        chosen = self._chosen(detectors)
        tried = parse(perturbations)
        with self._slots:
            decoded = self._decode(data, name)
            before = {detector.name: self._verdict(detector, decoded) for detector in chosen}
            after: dict[tuple[str, str], Verdict] = {}
            for policy in {detector.orientation_policy for detector in chosen}:
                upright = decoded.oriented(policy)
                for perturbation in tried:
                    picture = as_decoded(perturbation(upright, decoded.sha256))
                    for detector in chosen:
                        if detector.orientation_policy == policy:
                            after[detector.name, str(perturbation)] = self._verdict(detector, picture)
        rows = tuple(
            Survival.of(str(perturbation), before[detector.name], after[detector.name, str(perturbation)])
            for detector in chosen
            for perturbation in tried
        )
        return Launderings(facts.safe_name(name), decoded.sha256, rows)

    def exchange(
        self, original: bytes, edited: bytes, mask: bytes, detectors: Sequence[str] | None = None
    ) -> Exchanged:
        """Put the original's pixels back outside the mask (INP-X), and score all three pictures.

        All are taken upright, whatever a detector's own policy on EXIF orientation is: the three have to be seen in
        the same way.

        Args:
            original: A file's bytes.
            edited: The edit of the same picture, of the same size.
            mask: Of the same size, above 127 where the edit is.
            detectors: As in `analyse`.

        Raises:
            ImageError: One of them is not a picture.
            DatasetError: Sizes differ, or the mask is empty.
            UnknownDetectorError: A detector is not loaded.
        """
        chosen = self._chosen(detectors)
        with self._slots:
            decoded = [
                self._decode(data, name) for data, name in ((original, "original"), (edited, "edited"), (mask, "mask"))
            ]
            first, second, third = (item.oriented("apply") for item in decoded)
            inside = _mask(first, second, third)
            before, after = np.asarray(first), np.asarray(second)
            made = exchange(before, after, inside)
            changed = (before != after).any(axis=2) & ~inside
            image = _image(made)
            verdicts = [
                tuple(self._verdict(detector, as_decoded(picture)) for detector in chosen)
                for picture in (first, second, image)
            ]
        notes = []
        if any(item.orientation != 1 for item in decoded[:2]):
            notes.append("turned upright by EXIF first; detectors that take pixels as stored see another picture here")
        if not changed.any():
            notes.append("outside the mask the edit is the original already, so the exchange changes nothing")
        return Exchanged(
            image=image,
            share=float(inside.mean()),
            outside=float(changed.sum() / max((~inside).sum(), 1)),
            original=verdicts[0],
            edited=verdicts[1],
            exchanged=verdicts[2],
            notes=tuple(notes),
        )

    def _decode(self, data: bytes, name: str) -> images.DecodedImage:
        return images.decode(data, name=facts.safe_name(name), max_pixels=self.max_pixels)

    def _chosen(self, detectors: Sequence[str] | None) -> list[LoadedDetector]:
        found = [self._find(name) for name in detectors or self._loaded]
        return list({detector.name: detector for detector in found}.values())

    def _find(self, name: str) -> LoadedDetector:
        if name in self._loaded:
            return self._loaded[name]
        of_method = [detector for detector in self._loaded.values() if detector.info.name == name]
        if not of_method:
            known = [*self._loaded, *(detector.info.name for detector in self._loaded.values())]
            raise UnknownDetectorError(
                f"no detector {facts.shown(name, 80)!r} is loaded here",
                hint=suggest(name[:80], known) or f"loaded: {', '.join(self._loaded)}",
            )
        return of_method[0]

    def _verdict(self, detector: LoadedDetector, decoded: images.DecodedImage) -> Verdict:
        score: Score | None = None
        error = ""
        try:
            prepared = detector.prepare(decoded)
            with self._forward:
                raw = float(detector.forward([prepared])[0])
            score = detector.judge(raw)
        except ZooError as problem:  # told in the verdict: the other detectors' stand
            error = str(problem)
        return Verdict(
            detector=detector.info.name,
            weights=detector.tag,
            weights_sha256=detector.weights_sha256,
            log_odds=score.log_odds if score else None,
            probability=score.probability if score else None,
            raw=score.raw if score else None,
            threshold=score.threshold if score else None,
            label=score.label if score else "",
            calibrated=_calibrated(detector),
            localizes=isinstance(detector.detector, Localizer),
            licence=detector.spec.licence if detector.spec else "",
            note=decoded.note,
            error=error,
        )


def _calibrated(detector: LoadedDetector) -> bool:
    return detector.spec is not None and detector.spec.calibration is not None


def _served(detector: LoadedDetector) -> Served:
    spec = detector.spec
    return Served(
        name=detector.name,
        detector=detector.info.name,
        weights=detector.tag,
        weights_sha256=detector.weights_sha256,
        summary=detector.info.summary,
        licence=spec.licence if spec else "",
        trained_on=spec.trained_on if spec else "",
        threshold=detector.threshold,
        inconclusive=detector.inconclusive,
        calibrated=_calibrated(detector),
        fitted_on=spec.calibration.fitted_on if spec and spec.calibration else "",
        localizes=isinstance(detector.detector, Localizer),
        results=tuple(asdict(result) for result in spec.reproduced) if spec else (),
    )


def _mask(original: Image.Image, edited: Image.Image, mask: Image.Image) -> NDArray[np.bool_]:
    for what, image in (("edit", edited), ("mask", mask)):
        if image.size != original.size:
            raise DatasetError(
                f"the {what} has {image.width} x {image.height} pixels, the original {original.width} x "
                f"{original.height}",
                hint="original, edit and mask have to be of one size",
            )
    inside: NDArray[np.bool_] = np.asarray(mask.convert("L")) > 127
    if not inside.any():
        raise DatasetError("the mask is empty: nothing in it is above 127", hint="white marks the edit")
    return inside


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels)
