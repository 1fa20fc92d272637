"""What happens to a picture between its maker and a detector, by name: ``jpeg:75``, ``blur:1``, ``screenshot``.

A plugin adds its own by the hook ``register_perturbations``: ``register("fog", "module:function")``, where the
function takes an RGB image, the number behind the colon if there is one, and a random generator by keyword::

    def fog(image: Image.Image, density: float, *, rng: np.random.Generator) -> Image.Image: ...

It returns an RGB image of any size and raises ValueError for a number that it does not take. The generator is seeded
by the SHA-256 of the file and the perturbation's name, so that an image is always perturbed in the same way.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from detector_zoo.errors import PluginError
from detector_zoo.hookspecs import hookimpl
from detector_zoo.plain import one_line
from detector_zoo.plugins import catalogue

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["GRID", "Perturbation", "known_perturbations", "parse", "register_perturbations"]

_OWN = (
    "none",
    "jpeg",
    "webp",
    "avif",
    "resize_bilinear",
    "resize_bicubic",
    "resize_lanczos",
    "crop",
    "blur",
    "noise",
    "screenshot",
    "social_media",
)

GRID = (
    *(f"jpeg:{quality}" for quality in (95, 85, 75, 60, 40)),
    *(f"webp:{quality}" for quality in (90, 75, 50)),
    *(f"avif:{quality}" for quality in (80, 60, 40)),
    *(f"resize_{kernel}:{scale}" for kernel in ("bilinear", "bicubic", "lanczos") for scale in (0.5, 0.75, 1.5)),
    *(f"crop:{share}" for share in (0.75, 0.5)),
    *(f"blur:{sigma}" for sigma in (0.5, 1, 2)),
    *(f"noise:{sigma}" for sigma in (2, 5, 10)),
    "screenshot",
    "social_media",
)
"""What `zoo audit laundering` tries unless told otherwise."""


@hookimpl
def register_perturbations(register: Callable[[str, str], None]) -> None:
    """Register the core's own."""
    for name in _OWN:
        register(name, f"detector_zoo.evaluation.transforms:{name}")


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One perturbation at one strength.

    Attributes:
        name: As registered.
        value: The number behind the colon, or None.
        function: See the module's docstring.
    """

    name: str
    value: float | None
    function: Callable[..., Image.Image]

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}:{self.value:g}"

    def __call__(self, image: Image.Image, sha256: str) -> Image.Image:
        """Perturb an RGB image.

        Args:
            image: Is left as it is.
            sha256: Of the file that it comes from; seeds whatever is random.

        Raises:
            PluginError: The function raised, or returned something other than an RGB image.
        """
        import numpy as np
        from PIL import Image

        seed = hashlib.sha256(f"{sha256} {self}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(seed, np.uint32))
        try:
            found = self.function(image, *_values(self.value), rng=rng)
        except KeyboardInterrupt:
            raise
        # A plugin's code can raise anything, sys.exit() included.
        except BaseException as error:
            raise PluginError(f"perturbation {self} failed: {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(found, Image.Image) or found.mode != "RGB":
            raise PluginError(f"perturbation {self} did not return an RGB image")
        return found


def parse(specs: Sequence[str]) -> list[Perturbation]:
    """Look perturbations up, and try each on a small grey image.

    Args:
        specs: Each ``name`` or ``name:number``.

    Raises:
        ValueError: A name is not registered, a number is missing or not accepted; one line.
        PluginError: The plugin's function cannot be imported, or failed.
    """
    return [_parse(spec) for spec in dict.fromkeys(specs)]


def known_perturbations() -> dict[str, str]:
    """``module:function`` by name.

    Ours are registered by the same hook as a plugin's, but not through an entry point, so that the safe mode
    (``DETECTOR_ZOO_PLUGINS=``) still has them.
    """
    ours: dict[str, str] = {}
    register_perturbations(register=ours.__setitem__)
    return catalogue().perturbations | ours


def _parse(spec: str) -> Perturbation:
    import numpy as np
    from PIL import Image

    name, colon, number = spec.strip().partition(":")
    known = known_perturbations()
    if name not in known:
        raise ValueError(f"unknown perturbation {name!r}; known: {', '.join(sorted(known))}")
    try:
        value = float(number) if colon else None
    except ValueError:
        raise ValueError(f"perturbation {spec!r}: {number!r} is not a number") from None
    function = _import(name, known[name])
    rng = np.random.default_rng(0)
    try:
        inspect.signature(function).bind(None, *_values(value), rng=rng)
    except TypeError as error:
        needs = "takes no number" if colon else "needs a number, as in jpeg:75"
        raise ValueError(f"perturbation {spec!r} {needs}") from error
    found = Perturbation(name, value, function)
    try:
        function(Image.new("RGB", (64, 64), (128, 128, 128)), *_values(value), rng=rng)
    except ValueError as error:
        raise ValueError(f"perturbation {spec!r}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"perturbation {found} failed: {type(error).__name__}: {one_line(error)}") from error
    return found


def _values(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _import(name: str, target: str) -> Callable[..., Image.Image]:
    module, _, attribute = target.partition(":")
    try:
        function: Callable[..., Image.Image] = getattr(import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    # Importing a plugin's module runs a stranger's code.
    except BaseException as error:
        raise PluginError(
            f"perturbation {name}: cannot load {target}: {type(error).__name__}: {one_line(error)}", hint="zoo plugins"
        ) from error
    return function
