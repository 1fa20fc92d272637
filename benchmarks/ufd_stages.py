"""How many stages of EfficientNet-lite0, and which penalty, ufd_clip.lite should have: the table in its card.

    python benchmarks/ufd_stages.py --data DATA --out .work/ufd_stages

AUROC on sources of the train split that were left out, of both classes at a time; the val split is not looked at. The
images are those of the recipe: equalised, two augmented versions to learn from, one cut to measure. Features are kept
in --out, once computed (some minutes on one core).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from detector_zoo import convert
from detector_zoo.evaluation import datasets
from detector_zoo.evaluation.metrics import auroc
from detector_zoo.evaluation.samples import Sample
from detector_zoo.networks.small import EfficientNetLite0
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.training import pretrained
from detector_zoo.training.augment import Augmentation
from detector_zoo.training.batches import Mix, probabilities
from detector_zoo.training.pictures import evenly, window
from detector_zoo.training.recipes import build
from detector_zoo.training.splits import select

RECIPE = Path(__file__).parents[1] / "plugins" / "detector_zoo_ufd_clip" / "recipes" / "lite.yaml"
STAGES = (4, 5, 6, 7)
PENALTIES = (1, 3, 10, 30, 100, 300)
VERSIONS = 2
LEFT_OUT = {
    "text to image, ComfyUI": ({"comfyui-examples"}, {"openimages-200"}),
    "text to image, previews": ({"sdnext-reference"}, {"dreambooth-unsplash", "scratch"}),
    "super-resolution": (
        {"sr-bsrgan", "sr-esrgan", "sr-realsr_jpeg"},
        {
            "camera-exif-metadata-extractor",
            "darknet",
            "dlib",
            "exiv2",
            "lomiri-wallpapers-16.04",
            "plasma-workspace-wallpapers",
        },
    ),
}
"""Sources of generated images and of photographs that are measured on and not learnt from, by the fold's name."""


def features(samples: Sequence[Sample], recipe: dict[str, Any], version: int | None) -> dict[int, Tensor]:
    """Means of every stage's output, (N, C), by the number of stages, as `EfficientNetLite0` gives them."""
    inputs = Preprocessing.of("recipe", recipe["preprocessing"])
    augmentation = Augmentation.of(tuple(recipe["augmentation"]))
    networks: dict[int, Any] = {}
    for stages in STAGES:
        networks[stages] = EfficientNetLite0(stages).eval()
        pretrained.fill(networks[stages], "efficientnet_lite0")
    found: dict[int, list[Tensor]] = {stages: [] for stages in STAGES}
    for sample in samples:
        if version is None:
            image = evenly(sample, orientation="ignore")
        else:
            seed = (0, version, int(sample.sha256[:12], 16))
            image = augmentation(window(sample, (*seed, 0), orientation="ignore"), (*seed, 1)).image
        x = inputs.normalise(inputs.pixels(image)[None])
        with torch.inference_mode():
            for stages, network in networks.items():
                found[stages].append(network.features(x).mean((2, 3))[0])
    return {stages: torch.stack(values) for stages, values in found.items()}


def weights(samples: Sequence[Sample], mix: Mix) -> np.ndarray:
    """How much each sample counts, as in training."""
    out = np.zeros(len(samples))
    for generated, share in ((True, mix.generated), (False, 1 - mix.generated)):
        places = [i for i, s in enumerate(samples) if s.generated == generated]
        out[places] = share * probabilities([samples[i] for i in places], mix)
    return out


def left_out(
    samples: Sequence[Sample], learnt: np.ndarray, seen: np.ndarray, penalty: float, mix: Mix
) -> dict[str, float]:
    """AUROC of each fold.

    Args:
        samples: N of them.
        learnt: Features of their augmented versions, (V, N, C).
        seen: Features of what is measured, (N, C).
        penalty: ``l2`` of the recipe.
        mix: See there.
    """
    sources = np.array([s.source for s in samples])
    labels = np.array([s.generated for s in samples])
    out: dict[str, float] = {}
    for name, (fakes, photographs) in LEFT_OUT.items():
        test = np.isin(sources, sorted(fakes | photographs))
        weight = weights([s for s, out in zip(samples, test, strict=True) if not out], mix)
        x = learnt[:, ~test].reshape(-1, learnt.shape[-1])
        weight, y = np.tile(weight, len(learnt)) / len(learnt), np.tile(labels[~test], len(learnt))
        scale = StandardScaler().fit(x, sample_weight=weight)
        # The recipe has the square times l2 / 2n beside a mean, sklearn the mean times C beside half the square.
        head = LogisticRegression(C=(~test).sum() / penalty, max_iter=2000)
        head.fit(scale.transform(x), y, sample_weight=weight)
        out[name] = auroc(labels[test], head.decision_function(scale.transform(seen[test])))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    mix = build(Mix, recipe["mix"], "mix")
    samples = select(datasets.read(options.data), "train")
    options.out.mkdir(parents=True, exist_ok=True)
    tables = []
    for version in (*range(VERSIONS), None):
        path = options.out / f"{'even' if version is None else version}.safetensors"
        if not path.exists():
            found = features(samples, recipe, version)
            with convert.atomic(path) as staging:
                convert.write({str(stages): values for stages, values in found.items()}, staging)
        tables.append(convert.read_safetensors(path))
    record = []
    print(f"| stages | float16, MB | features | l2 | {' | '.join(LEFT_OUT)} | mean |")
    print("|---|---|---|---|" + "---|" * (len(LEFT_OUT) + 1))
    for stages in STAGES:
        *learnt, seen = (table[str(stages)].double().numpy() for table in tables)
        size = 2e-6 * sum(value.numel() for value in EfficientNetLite0(stages).state_dict().values())
        for penalty in PENALTIES:
            found = left_out(samples, np.stack(learnt), seen, penalty, mix)
            mean = float(np.mean(list(found.values())))
            record.append({"stages": stages, "l2": penalty, "mean": mean, **found})
            values = " | ".join(f"{value:.3f}" for value in (*found.values(), mean))
            print(f"| {stages} | {size:.2f} | {seen.shape[1]} | {penalty} | {values} |", flush=True)
    (options.out / "table.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
