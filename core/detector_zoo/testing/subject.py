"""What the conformance suite examines: a detector, its plugin, and the images that it is tried on."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from detector_zoo.entry_points import entry_points
from detector_zoo.errors import PluginError
from detector_zoo.hookspecs import ENTRY_POINT_GROUP
from detector_zoo.info import DetectorInfo
from detector_zoo.loading import LoadedDetector, import_target, load
from detector_zoo.plugins import Plugin, catalogue
from detector_zoo.registry import WeightSpec, resolve
from detector_zoo.sources import walk

__all__ = ["Subject", "encoded", "grainy"]

Places = Path | str | Sequence[Path | str]
SIZES = ((96, 64), (64, 96), (96, 64), (80, 80), (33, 47), (96, 64))


def grainy(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random colour picture with some grain, RGB: no photograph, but not flat either."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Subject:
    """A detector under examination. Nothing is imported or loaded before it is asked for."""

    def __init__(
        self, detector: type | str, *, real: Places = (), generated: Places = (), weights: Path | str | None = None
    ) -> None:
        """See `detector_zoo.testing.conformance`."""
        self._detector = detector
        self._examples: Mapping[str, Places] = {"real": real, "generated": generated}
        self._weights = None if weights is None else Path(weights)
        self._failure: BaseException | None = None

    @cached_property
    def name(self) -> str:
        """As `load` takes it; a dash, as in the name of a package, counts as an underscore.

        Raises:
            PluginError: No installed plugin registers the class.
        """
        if isinstance(self._detector, str):
            return self._detector.replace("-", "_")
        wanted = self._detector
        top = wanted.__module__.partition(".")[0]
        for info in catalogue().detectors.values():
            module, _, attribute = info.load.partition(":")
            # Only its own package's: importing every detector to look for one would take a while.
            ours = module.partition(".")[0] == top and attribute == wanted.__name__
            if ours and import_target(info) is wanted:
                return info.name
        raise PluginError(
            f"no installed plugin registers {wanted.__module__}:{wanted.__qualname__}",
            hint="pip install -e . in the folder of its package, then look at: zoo plugins",
        )

    @cached_property
    def resolved(self) -> tuple[DetectorInfo, WeightSpec | None]:
        """What its plugin registered, and the weights that it is examined with.

        Raises:
            UnknownDetectorError: No such detector or weights.
        """
        if self._weights is not None:
            from detector_zoo.training.artifact import load_folder

            return catalogue().detectors[self.name.partition(".")[0]], load_folder(self._weights).spec
        return resolve(self.name)

    @property
    def info(self) -> DetectorInfo:
        """What its plugin registered, which is there even where the weights are unknown."""
        found = catalogue().detectors.get(self.name.partition(".")[0])
        return found if found is not None else self.resolved[0]

    @property
    def spec(self) -> WeightSpec | None:
        """The weights."""
        return self.resolved[1]

    @property
    def plugin(self) -> Plugin:
        """The row of `zoo plugins`."""
        return catalogue().owners["detectors", self.info.name]

    @cached_property
    def module(self) -> str:
        """The module behind the entry point, which is imported whenever anything asks for the installed detectors."""
        row = self.plugin
        points = entry_points(ENTRY_POINT_GROUP)
        point = next(p for p in points if (p.name, p.distribution) == (row.name, row.distribution))
        return point.value.partition(":")[0]

    @cached_property
    def files_of_package(self) -> list[Path]:
        """Every file of the package that the plugin's module is in."""
        found = find_spec(self.module)
        if found is None:
            raise PluginError(f"there is no module {self.module}")
        folders = list(found.submodule_search_locations or ())
        if not folders:
            return [Path(found.origin)] if found.origin else []
        return sorted(path for folder in folders for path in Path(folder).rglob("*") if path.is_file())

    @cached_property
    def loaded(self) -> LoadedDetector:
        """The detector with its weights, on the CPU, fetched where they are not at hand.

        Raises:
            ZooError: It cannot be loaded.
        """
        if self._failure is not None:  # one try: the next would download again
            raise self._failure
        try:
            if self._weights is None:
                return load(self.name, device="cpu")
            from detector_zoo.training.artifact import load_detector

            return load_detector(self._weights, method=self.name, device="cpu")
        except BaseException as error:
            self._failure = error
            raise

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """Six pictures of four sizes, three of them of one."""
        return [grainy(*size, seed) for seed, size in enumerate(SIZES)]

    @contextmanager
    def files(self) -> Iterator[list[Path]]:
        """The pictures as PNG files."""
        with TemporaryDirectory(prefix="zoo-check-") as folder:
            paths = [Path(folder, f"{number}.png") for number in range(len(self.pictures))]
            for path, picture in zip(paths, self.pictures, strict=True):
                picture.save(path)
            yield paths

    @cached_property
    def expected(self) -> list[float]:
        """The pictures' log-odds, each scored alone."""
        return [float(self.loaded.score([picture])[0]) for picture in self.pictures]

    def examples(self, label: str) -> list[Path]:
        """The author's examples of a class, ``real`` or ``generated``.

        Raises:
            DatasetError: A place that was named has no image.
        """
        given = self._examples[label]
        places = [given] if isinstance(given, str | Path) else list(given)
        if not places:
            found = find_spec(self.module)
            beside = Path(found.origin).parent / "examples" / label if found and found.origin else None
            places = [beside] if beside is not None and beside.is_dir() else []
        return [Path(path) for path in walk([str(place) for place in places])] if places else []
