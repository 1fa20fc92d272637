"""What every claim's experiment runs on: trainings and scores that are kept, so that a repeated command goes on."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.photographs import first, photograph
from numpy.typing import NDArray
from PIL import Image

from detector_zoo import images
from detector_zoo.convert import atomic
from detector_zoo.errors import DatasetError
from detector_zoo.evaluation import in_memory
from detector_zoo.evaluation.datasets import read
from detector_zoo.evaluation.equalise import equalise, equalise_file
from detector_zoo.evaluation.samples import Sample
from detector_zoo.loading import LoadedDetector, import_target, load
from detector_zoo.training import artifact
from detector_zoo.training.job import Job
from detector_zoo.training.splits import select

__all__ = ["CONTENTS", "Bench", "Picture", "aligned", "content_of", "first", "photograph", "pictures", "whole"]

Picture = Callable[[], Image.Image]
"""Makes the image that a detector is to see."""

CONTENTS = Path(__file__).parent / "contents.csv"
"""What training images show, as judged by eye: the first 16 digits of a file's SHA-256, and one word."""

CHUNK = 32
"""Images whose scores lie in one file: what is lost when the command is interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The command's arguments, and the folder that trainings and scores are kept in.

    Attributes:
        data: The set with splits ``train`` and ``val``.
        made: Folder with ``recon-train``, ``recon-val``, ``edits-train`` and ``edits-val``, made of its photographs.
        out: Trainings and scores, by a hash of all that they depend on.
        corvi: Name of weights, or a run's folder.
        stay_positive: Likewise, made of the former.
        mdmf: Likewise; its embedder is used.
        seeds: One training of each kind each.
        steps: Of every training; None for each claim's own number.
        limit: Images of a class, or photographs with all that was made of them, that a network is tested on.
        resamples: Of the bootstrap.
        trainings: What was trained so far, for the report.
        say: Told what happens.
    """

    data: Path
    made: Path
    out: Path
    corvi: str = "corvi.lite"
    stay_positive: str = "stay_positive.lite"
    mdmf: str = "mdmf.lite"
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    limit: int | None = 64
    resamples: int = 2000
    trainings: list[dict[str, Any]] = field(default_factory=list)
    say: Callable[[str], None] = print

    def samples(self, name: str, split: str) -> list[Sample]:
        """Of one of the sets in ``made``, or of ``data`` for the name "data".

        Raises:
            DatasetError: It is not there.
        """
        place = self.data if name == "data" else self.made / f"{name}-{split}"
        return select(read(place), split)

    def train(
        self, name: str, method: str, samples: Sequence[Sample], recipe: Mapping[str, Any], *, steps: int, seed: int
    ) -> LoadedDetector:
        """Train a method by a recipe of the claim's own, unless that was done before.

        Nothing is chosen among steps: only the last one is validated. ``metrics`` of the run's folder are its own
        affair; what is reported comes from images of another slice.

        Args:
            name: Of the run.
            method: Without a tag.
            samples: To learn from, hashed.
            recipe: Without its schedule. Not one of the plugin's, whose changes would change what is found here.
            steps: Of training, unless the command says otherwise.
            seed: Of every draw.
        """
        info = artifact.info_of(method)
        target: Any = import_target(info)
        steps = self.steps or steps
        pace = {"rate": "cosine", "warmup": min(50, steps // 4), "average": 0.99, "monitor": "auroc"}
        values = {**recipe, "schedule": {"steps": steps, "every": steps, **pace}}
        job = Job(
            name=f"{method}.findings",
            samples=tuple(samples),
            recipe="findings",
            values=values,
            out=self.out,
            data=name,
            seed=seed,
            device="cpu",
            quiet=True,
        )
        folder = self.out / "runs" / f"{name}-{seed}-{job.fingerprint()[:12]}"
        if not (folder / artifact.SPEC_FILE).is_file():
            self.say(f"training {folder.name}: {steps} steps, {len(samples)} images")
            target.fit(replace(job, out=folder))
        record = json.loads((folder / artifact.RECORD_FILE).read_text("utf-8"))
        generated = sum(s.generated for s in samples)
        self.trainings.append(
            {
                "name": name,
                "method": method,
                "recipe": values,
                "seed": seed,
                "real": len(samples) - generated,
                "generated": generated,
                "data_sha256": record["data"]["sha256"],
                "steps": record["steps"]["done"],
                "seconds": record["seconds"],
                "weights_sha256": (found := artifact.load_detector(folder, device="cpu")).weights_sha256,
            }
        )
        return found

    def load(self, place: str) -> LoadedDetector:
        """Weights by name, or from a run's folder."""
        folder = Path(place)
        return artifact.load_detector(folder, device="cpu") if folder.is_dir() else load(place, device="cpu")

    def scores(self, detector: LoadedDetector, how: str, items: Sequence[tuple[str, Picture]]) -> NDArray[np.float64]:
        """Log-odds, (N,), of pictures; kept by the weights, by ``how`` and by the pictures' keys.

        Args:
            detector: See there.
            how: Names what was done to the pictures, and anything else that a score depends on.
            items: Each with a key that tells its file.

        Raises:
            DatasetError: A picture could not be scored.
        """
        kind = f"{detector.name} {detector.weights_sha256} {how}"
        return self._kept("scores", kind, [key for key, _ in items], partial(_score, detector, dict(items)))

    def values(self, kind: str, keys: Sequence[str], work: Callable[[str], float]) -> NDArray[np.float64]:
        """Any other number of each image, (N,), kept by ``kind`` and key; NaN where it is not defined."""
        return self._kept("values", kind, keys, lambda missing: {key: work(key) for key in missing})

    def _kept(
        self, folder: str, kind: str, keys: Sequence[str], work: Callable[[Sequence[str]], Mapping[str, float]]
    ) -> NDArray[np.float64]:
        path = self.out / folder / f"{hashlib.sha256(kind.encode()).hexdigest()[:24]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        known: dict[str, float | None] = json.loads(path.read_text("utf-8"))["values"] if path.is_file() else {}
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            self.say(f"{kind[:60]}: {len(missing)} images")
        for start in range(0, len(missing), CHUNK):
            found = work(missing[start : start + CHUNK])
            known |= {key: float(value) if np.isfinite(value) else None for key, value in found.items()}
            with atomic(path) as staging:
                staging.write_text(json.dumps({"kind": kind, "values": known}), "utf-8")
        return np.array([known[key] for key in keys], np.float64)


def _score(detector: LoadedDetector, items: Mapping[str, Picture], keys: Sequence[str]) -> dict[str, float]:
    out: dict[str, float] = {}
    for key, value in in_memory.score(detector, ((key, items[key]()) for key in keys)):
        if isinstance(value, str):
            raise DatasetError(f"{key}: {value}")
        out[key] = value
    return out


def whole(sample: Sample) -> Picture:
    """A file equalised for itself: one cut, one first JPEG generation, one last JPEG, drawn by its hash."""
    return partial(equalise_file, sample.path)


def aligned(sample: Sample) -> Picture:
    """A lossless file equalised by draws that are those of its photograph: all made of it are cut and coded alike."""

    def picture() -> Image.Image:
        digest = hashlib.sha256(photograph(sample).encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
        return equalise(images.decode(sample.path).oriented("apply"), has_jpeg_history=False, rng=rng)

    return picture


def pictures(samples: Sequence[Sample], make: Callable[[Sample], Picture]) -> list[tuple[str, Picture]]:
    """Samples as `Bench.scores` takes them."""
    return [(s.sha256, make(s)) for s in samples]


def content_of(samples: Sequence[Sample]) -> NDArray[np.str_]:
    """What each sample shows, by its photograph or by itself, "" where nobody has said."""
    with CONTENTS.open(encoding="utf-8", newline="") as stream:
        known = {row["sha256"]: row["content"] for row in csv.DictReader(stream)}
    return np.array([known.get(photograph(s)[:16], "") for s in samples])
