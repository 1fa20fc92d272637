"""From a name to a detector that scores: `load`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from detector_zoo import images, registry, weights
from detector_zoo.detector import Detector, Explainer, Localizer, Precision, Score, TorchDetector, probability, verdict
from detector_zoo.errors import PluginError, UnknownDetectorError, WeightsError, ZooError
from detector_zoo.info import DetectorInfo
from detector_zoo.plain import one_line
from detector_zoo.plugins import list_detectors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["LoadedDetector", "load"]

Source = Any
"""A path, the bytes of a file, an array (H, W, 3) or a PIL image: what `images.decode` takes."""


@dataclass(frozen=True, slots=True)
class LoadedDetector:
    """A detector with its weights, ready to score; itself a `Detector`.

    Attributes:
        info: What its plugin registered.
        spec: The weights, or None for a detector without.
        detector: The plugin's own object.
        threshold: Log-odds above which an image is called generated; the weights' own unless overridden.
        max_pixels: Larger images are refused.
    """

    info: DetectorInfo
    spec: registry.WeightSpec | None
    detector: Detector
    threshold: float = 0.0
    inconclusive: float = 0.0
    max_pixels: int = images.DEFAULT_MAX_PIXELS
    weights_sha256: str = field(default="")

    @property
    def name(self) -> str:
        """``method.tag``, ``method.tag@variant``, or the method alone where there are no weights."""
        return f"{self.info.name}.{self.tag}" if self.spec else self.info.name

    @property
    def tag(self) -> str:
        """The weights' tag, with the variant where there is one, or ""."""
        if self.spec is None:
            return ""
        return f"{self.spec.tag}@{self.spec.variant}" if self.spec.variant else self.spec.tag

    @property
    def orientation_policy(self) -> str:
        """Whether EXIF orientation is applied before scoring: ``apply`` or ``ignore``."""
        return str(self.spec.preprocessing.get("exif_orientation", "apply")) if self.spec else "apply"

    def prepare(self, decoded: images.DecodedImage) -> Any:
        """What the detector's forward pass takes: a tensor (C, H, W) from a `TorchDetector`, else the image.

        Raises:
            PluginError: The detector's transform raised.
        """
        with self.blamed():
            image = decoded.oriented(self.orientation_policy)
            return self.detector.transform(image) if isinstance(self.detector, TorchDetector) else image

    def forward(self, prepared: Sequence[Any]) -> NDArray[np.float64]:
        """Raw scores, (N,) float64, of inputs from `prepare` that share one shape.

        Raises:
            PluginError: The detector raised, or returned something other than N finite numbers.
        """
        with self.blamed():
            if isinstance(self.detector, TorchDetector):
                import torch

                raw = self.detector.raw(torch.stack(list(prepared)))
            else:
                scores = np.asarray(self.detector.score(prepared))
                if scores.dtype.kind not in "fiu":
                    raise PluginError(f"{self.name} returned {scores.dtype}, not numbers")
                raw = scores.astype(np.float64)
        if raw.shape != (len(prepared),):
            raise PluginError(f"{self.name} returned shape {raw.shape} for {len(prepared)} images")
        if not np.isfinite(raw).all():
            raise PluginError(f"{self.name} returned a score that is not a finite number")
        return raw

    def judge(self, raw: float) -> Score:
        """A raw score to a verdict; a pure function of the weights' calibration and the threshold."""
        calibration = self.spec.calibration if self.spec else None
        log_odds = raw if calibration is None else calibration.scale * raw + calibration.offset
        return Score(
            log_odds=log_odds,
            probability=probability(log_odds),
            raw=raw,
            label=verdict(log_odds, self.threshold, self.inconclusive),
            threshold=self.threshold,
            detector=self.info.name,
            weights=self.tag,
            calibrated=calibration is not None,
        )

    def predict(self, sources: Sequence[Source]) -> list[Score]:
        """Judge images given as paths, bytes, arrays or PIL images.

        Raises:
            ImageError: One of them cannot be read.
            PluginError: The detector failed.
        """
        return [self.judge(raw) for raw in self._raw(sources)]

    def score(self, images: Sequence[Source]) -> NDArray[np.float32]:
        """Log-odds, (N,) float32, of images given as paths, bytes, arrays or PIL images; errors as `predict`."""
        return np.array([self.judge(raw).log_odds for raw in self._raw(images)], np.float32)

    def heatmap(self, source: Source) -> NDArray[np.float32]:
        """Evidence map of one image, (H, W) float32, higher where it looks generated.

        Raises:
            PluginError: The detector cannot localize, or failed.
            ImageError: The image cannot be read.
        """
        decoded = source if isinstance(source, images.DecodedImage) else self._decode(source)
        return self.map_of(decoded.oriented(self.orientation_policy))

    def evidence(self, source: Source) -> dict[str, float]:
        """Named parts of one image's raw score, in its unit.

        Raises:
            PluginError: The detector cannot explain itself, or failed.
            ImageError: The image cannot be read.
        """
        if not isinstance(self.detector, Explainer):
            raise PluginError(f"{self.name} does not explain its score", hint="zoo list --capability explain")
        image = self._decode(source).oriented(self.orientation_policy)
        with self.blamed():
            return dict(self.detector.evidence(image))

    def map_of(self, image: Image.Image) -> NDArray[np.float32]:
        """`heatmap` of an image that is decoded and oriented already."""
        if not isinstance(self.detector, Localizer):
            raise PluginError(f"{self.name} has no heatmap", hint="zoo list --capability localize")
        with self.blamed():
            heat = np.asarray(self.detector.heatmap([image]), np.float32)
        if heat.shape != (1, image.height, image.width):
            raise PluginError(f"{self.name} returned a heatmap of shape {heat.shape} for an image of {image.size}")
        if not np.isfinite(heat).all():
            raise PluginError(f"{self.name} returned a heatmap that is not finite numbers")
        return cast("NDArray[np.float32]", heat[0])

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Turn whatever a stranger's code raises into one line that names the detector."""
        with blamed(f"{self.name} failed"):
            yield

    def _decode(self, source: Source) -> images.DecodedImage:
        return images.decode(source, max_pixels=self.max_pixels)

    def _raw(self, sources: Sequence[Source], batch_size: int = 16) -> list[float]:
        """Raw scores in input order; decoded and forwarded a batch at a time, so memory is flat in N."""
        out: list[float] = []
        for start in range(0, len(sources), batch_size):
            prepared = [self.prepare(self._decode(source)) for source in sources[start : start + batch_size]]
            shapes = [tuple(item.shape) if hasattr(item, "shape") else () for item in prepared]
            raw = np.empty(len(prepared))
            for shape in dict.fromkeys(shapes):
                members = [i for i, s in enumerate(shapes) if s == shape]
                raw[members] = self.forward([prepared[i] for i in members])
            out.extend(raw.tolist())
        return out


def load(
    name: str,
    *,
    device: str = "auto",
    threshold: float | None = None,
    max_pixels: int = images.DEFAULT_MAX_PIXELS,
    memory: int | None = None,
    precision: Precision = "fp32",
) -> LoadedDetector:
    """Load a detector and its weights, fetching and verifying them when they are not at hand.

    Args:
        name: ``method`` for its default weights, ``method.tag``, or ``method.tag@variant``.
        device: ``auto`` (CUDA, then MPS, then the CPU), or a torch device.
        threshold: In log-odds; by default the weights' own, with their band of inconclusive scores.
        max_pixels: Refuse larger images.
        memory: Bytes that a forward pass may take; larger images go through in tiles, where the method allows. By
            default 2 GB on the CPU, and what is free on CUDA.
        precision: ``bf16`` and ``fp16`` change scores a little, and are for CUDA; ``bf16`` works on the CPU too.

    Raises:
        UnknownDetectorError: No such detector, tag or variant.
        WeightsError: The weights cannot be had, or do not fit.
        PluginError: The plugin's module cannot be imported.
    """
    info, spec = registry.resolve(name)
    target = import_target(info)
    if spec is None:
        with blamed(f"{info.name}: {info.load} cannot be built"):
            built = target()
        sha256 = ""
    else:
        if not hasattr(target, "from_weights"):
            raise PluginError(f"{info.name}: {info.load} has no from_weights")
        bundle = weights.load_weights(spec, progress=True)
        spec = bundle.spec
        with blamed(f"{info.name}: {info.load} cannot be built"):
            built = weights.instantiate(target, bundle)
        sha256 = spec.sha256 or ""
        if isinstance(built, TorchDetector):
            built.spec = spec
    if not isinstance(built, Detector):
        raise PluginError(f"{info.name}: {info.load} has no method score")
    if isinstance(built, TorchDetector):
        where = pick_device(device)
        with blamed(f"{info.name} cannot be moved to {where}"):
            built.to(where)
        built.memory = memory
        built.precision = _supported(precision, built.device.type)
    calibration = spec.calibration if spec else None
    return LoadedDetector(
        info=info,
        spec=spec,
        detector=built,
        threshold=(spec.threshold if spec else 0.0) if threshold is None else threshold,
        # A user who names a threshold has decided what to call generated: no band around it.
        inconclusive=calibration.inconclusive if calibration and threshold is None else 0.0,
        max_pixels=max_pixels,
        weights_sha256=sha256,
    )


def import_target(info: DetectorInfo) -> Any:
    """The class that ``info.load`` names.

    Raises:
        PluginError: Its module cannot be imported, or has no such name.
    """
    module, _, attribute = info.load.partition(":")
    with blamed(f"{info.name}: cannot load {info.load}", hint="zoo plugins"):
        return getattr(import_module(module), attribute)


@contextmanager
def blamed(what: str, hint: str | None = None) -> Iterator[None]:
    """Turn whatever a stranger's code raises, sys.exit() included, into a `PluginError` of one line.

    A KeyboardInterrupt passes: here it is the user's.
    """
    try:
        yield
    except (ZooError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginError(f"{what}: {type(error).__name__}: {one_line(error)}", hint=hint) from error


def pick_device(device: str) -> str:
    """Resolve ``auto``, and refuse a device that this machine lacks.

    Raises:
        ZooError: torch cannot use the device.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ZooError(f"device {device!r} cannot be used: {one_line(error)}", hint="--device cpu") from error
    return device


def _supported(precision: Precision, device: str) -> Precision:
    if precision == "fp16" and device != "cuda":
        raise ZooError(f"precision fp16 needs CUDA, this is {device}", hint="--precision bf16, or fp32")
    return precision


def load_all(names: Sequence[str], skipped: list[str], **options: Any) -> list[LoadedDetector]:
    """Load what `select` makes of the names; what ``all`` stands for may fail, and costs only itself.

    Args:
        names: As the user gave them.
        skipped: A line is added for each detector that ``all`` skipped and why.
        options: Of `load`.

    Raises:
        UnknownDetectorError: ``all`` finds none, or no such detector.
        ZooError: A detector that was named cannot be loaded, or none can.
    """
    chosen, more = select(names)
    skipped += more
    loaded = []
    failure: ZooError | None = None
    for name in chosen:
        try:
            loaded.append(load(name, **options))
        except (PluginError, WeightsError) as error:
            if name in names:
                raise
            skipped.append(str(error))
            failure = error
    if failure is not None and not loaded:
        raise failure
    return loaded


def select(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Expand ``all`` to every detector whose weights are at hand, controls left out.

    Returns:
        The names to load, each once, and a line for each detector that ``all`` skipped and why.

    Raises:
        UnknownDetectorError: ``all`` finds none.
    """
    chosen: dict[str, None] = {}
    skipped: list[str] = []
    for name in names:
        if name != "all":
            chosen[name] = None
            continue
        for info in list_detectors():
            if info.control:
                continue
            try:
                _, spec = registry.resolve(info.name)
            except UnknownDetectorError as error:  # a plugin whose catalogue of weights is missing or broken
                skipped.append(f"{info.name}: {error}")
                continue
            if spec is None or weights.locate(spec):
                chosen[info.name] = None
            else:
                skipped.append(f"{info.name}: weights {spec.name} are not at hand ({weights.state(spec)})")
    if not chosen:
        raise UnknownDetectorError("no installed detector has its weights at hand", hint="zoo weights list")
    return list(chosen), skipped
