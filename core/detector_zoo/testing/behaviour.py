"""Properties that are found by scoring."""

from __future__ import annotations

import io
import math
import random
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

from detector_zoo import images
from detector_zoo.detector import Explainer, Localizer
from detector_zoo.errors import ImageError
from detector_zoo.scoring import Options, run
from detector_zoo.testing.subject import Subject, encoded, grainy
from detector_zoo.testing.verdicts import Broken, DoesNotApply, NotRun

__all__ = [
    "batch",
    "direction",
    "evidence",
    "extremes",
    "heatmap",
    "loads",
    "modes",
    "order",
    "seed",
    "shape",
    "sizes",
    "sources",
    "untouched",
    "workers",
]

TOLERANCE = 1e-4
"""Log-odds by which two scores of one image may differ: sums over batches round differently."""
ODD_SIZES = ((1, 1), (1, 130), (130, 1), (17, 16), (33, 129), (257, 255))


def loads(subject: Subject) -> str:
    """The class is built from its weights, fetched where they are not at hand."""
    detector = subject.loaded
    return f"{detector.name}, {'calibrated' if detector.judge(0.0).calibrated else 'not calibrated'}"


def shape(subject: Subject) -> str:
    """The plugin's own ``score`` returns (N,) float32, as `detector_zoo.Detector` asks, and prints nothing."""
    detector = subject.loaded
    for count in (1, 3):
        with detector.blamed(), redirect_stdout(io.StringIO()) as printed:
            scores = detector.detector.score(subject.pictures[:count])
        if printed.getvalue():
            raise Broken("prints while it scores, which would end up among the rows")
        if not isinstance(scores, np.ndarray):
            raise Broken(f"returned {type(scores).__name__} for {count} images, expected a numpy array")
        if scores.shape != (count,) or scores.dtype != np.float32:
            raise Broken(f"returned {scores.shape} {scores.dtype} for {count} images, expected ({count},) float32")
    return "(N,) float32"


def sizes(subject: Subject) -> str:
    """From one pixel on."""
    for size in ODD_SIZES:
        subject.loaded.score([grainy(*size)])
    return ", ".join(f"{width} x {height}" for width, height in ODD_SIZES)


def modes(subject: Subject) -> str:
    """Files as they come: the core's decoder makes RGB of them."""
    rgb = grainy(40, 30)
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    alpha = rgb.copy()
    alpha.putalpha(128)
    files = {
        "grey": encoded(rgb.convert("L")),
        "grey of 16 bits": encoded(deep),
        "grey with alpha": encoded(alpha.convert("LA")),
        "one bit": encoded(rgb.convert("1")),
        "palette": encoded(rgb.convert("P")),
        "RGBA": encoded(alpha),
        "RGBA of one pixel": encoded(alpha.crop((0, 0, 1, 1))),
        "CMYK": encoded(rgb.convert("CMYK"), "JPEG"),
    }
    for kind, data in files.items():
        try:
            subject.loaded.score([data])
        except Exception as error:
            raise Broken(f"{kind}: {error}") from error
    return ", ".join(files)


def extremes(subject: Subject) -> str:
    """Black, white and noise have no gradient, no variance, or nothing else: where a division goes wrong."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    flat = [Image.new("RGB", (64, 48), colour) for colour in ("black", "white", "grey", "red")]
    scores = [*subject.loaded.score([*flat, noise]), *subject.expected]
    if len(set(scores)) == 1:
        raise Broken(f"every image scores {scores[0]:g}, black, white, noise and pictures alike")
    return f"log-odds from {min(scores):.3g} to {max(scores):.3g}"


def untouched(subject: Subject) -> str:
    """Other detectors score the same decoded image."""
    detector = subject.loaded
    decoded = images.decode(grainy(64, 48))
    before = decoded.image.tobytes()
    detector.forward([detector.prepare(decoded)])
    if isinstance(detector.detector, Localizer):
        detector.map_of(decoded.image)
    if decoded.image.size != (64, 48) or decoded.image.tobytes() != before:
        raise Broken("the image was changed while it was scored")
    return "pixels compared before and after"


def batch(subject: Subject) -> str:
    """Together as alone."""
    _agree(subject.loaded.score(subject.pictures), subject.expected, "in one batch and alone")
    return f"{len(subject.pictures)} images together and alone"


def order(subject: Subject) -> str:
    """Backwards as forwards."""
    backwards = subject.loaded.score(subject.pictures[::-1])[::-1]
    _agree(backwards, subject.expected, "in the opposite order and alone")
    return "forwards and backwards"


def workers(subject: Subject) -> str:
    """Through the pipeline of `zoo score`, with and without threads."""
    with subject.files() as files:
        for count, size in ((0, 1), (2, 16), (2, 2)):
            options = Options(batch_size=size, workers=count)
            _pipeline(subject, files, options, f"with {count} workers and batches of {size}")
    return "0 and 2 workers, batches of 1, 2 and 16"


def _pipeline(subject: Subject, files: Sequence[Path], options: Options, how: str) -> None:
    rows = [row for (row,) in run(map(str, files), [subject.loaded], options)]
    if failed := [row.error for row in rows if row.error]:
        raise Broken(f"{how}: {failed[0]}")
    _agree([row.log_odds for row in rows if row.log_odds is not None], subject.expected, how)


def seed(subject: Subject) -> str:
    """A detector that draws at random draws the same for one image every time."""
    for number in (0, 1):
        random.seed(number)
        np.random.seed(number)
        if "torch" in sys.modules:
            import torch

            torch.manual_seed(number)
        _agree(subject.loaded.score(subject.pictures[:2]), subject.expected[:2], f"after the seed {number}")
    return "seeds of random, numpy and torch"


def sources(subject: Subject) -> str:
    """However an image is handed over."""
    picture = subject.pictures[0]
    with subject.files() as (path, *_):
        found = subject.loaded.score([path, str(path), path.read_bytes(), np.asarray(picture), picture])
    _agree(found, [subject.expected[0]] * len(found), "as path, text, bytes, array and picture")
    return "path, bytes, array and picture"


def heatmap(subject: Subject) -> str:
    """(N, H, W) float32 at the image's own size, each map independent of the images beside it."""
    detector = subject.loaded
    if not isinstance(detector.detector, Localizer):
        raise DoesNotApply("has no heatmap")
    pair = [subject.pictures[0], subject.pictures[2]]
    with detector.blamed():
        maps = detector.detector.heatmap(pair)
    expected = (len(pair), pair[0].height, pair[0].width)
    if not isinstance(maps, np.ndarray) or maps.shape != expected or maps.dtype != np.float32:
        got = f"{maps.shape} {maps.dtype}" if isinstance(maps, np.ndarray) else type(maps).__name__
        raise Broken(f"returned {got} for two images of {pair[0].size}, expected {expected} float32")
    for one, picture in zip(maps, pair, strict=True):
        alone = detector.heatmap(picture)
        scale = float(np.abs(alone).max())
        if not np.allclose(one, alone, rtol=1e-3, atol=TOLERANCE + 1e-3 * scale):
            raise Broken(f"a map differs by {float(np.abs(one - alone).max()):.3g} in a batch and alone")
    for size in ODD_SIZES:
        detector.heatmap(grainy(*size))
    return "(N, H, W) float32, finite"


def evidence(subject: Subject) -> str:
    """Named parts of the score, each a finite number."""
    if not isinstance(subject.loaded.detector, Explainer):
        raise DoesNotApply("does not explain its score")
    parts = subject.loaded.evidence(subject.pictures[0])
    if not parts or not all(isinstance(name, str) and math.isfinite(value) for name, value in parts.items()):
        raise Broken(f"expected named finite numbers, got {parts!r:.200}")
    return f"{len(parts)} parts"


def direction(subject: Subject) -> str:
    """Above 0 means generated: the author's generated examples score higher on average than the real ones."""
    if subject.info.control:
        raise DoesNotApply("a control statistic claims nothing")
    scores: dict[str, Sequence[float]] = {}
    for label in ("real", "generated"):
        paths = subject.examples(label)
        if not paths:
            raise NotRun(f"no {label} examples: give --{label}, or ship examples/{label}/ beside the plugin's module")
        scores[label] = _scored(subject, paths)
    real, generated = (float(np.mean(scores[label])) for label in ("real", "generated"))
    found = (
        f"mean log-odds {generated:+.3f} of {len(scores['generated'])} generated, "
        f"{real:+.3f} of {len(scores['real'])} real examples"
    )
    if not generated > real:
        raise Broken(found)
    return found


def _scored(subject: Subject, paths: Iterable[Path]) -> Sequence[float]:
    try:
        return [float(subject.loaded.score([path])[0]) for path in paths]
    except ImageError as error:
        raise Broken(f"an example cannot be read: {error}") from error


def _agree(scores: Iterable[float], expected: Sequence[float], how: str) -> None:
    got = [float(score) for score in scores]
    for score, wanted in zip(got, expected, strict=True):
        if abs(score - wanted) > TOLERANCE + 1e-5 * abs(wanted):
            raise Broken(f"an image scores {score:.6g} {how}, and {wanted:.6g} on its own")
