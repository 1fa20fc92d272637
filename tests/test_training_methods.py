"""How each method learns: its recipes, its loss, and a few steps from images to a detector."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from detector_zoo import weights
from detector_zoo.detector import Weights
from detector_zoo.errors import WeightsError, ZooError
from detector_zoo.networks import small
from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo.networks.small import EfficientNetLite0, NarrowResNet
from detector_zoo.training import artifact, pretrained, recipes
from detector_zoo.training.augment import Augmentation
from detector_zoo.training.batches import Batch
from detector_zoo.training.job import Job
from detector_zoo.training.positions import PositionRecipe, fit_positions
from detector_zoo.training.recipes import RecipeError, build
from detector_zoo.weight_specs import WeightSpec
from detector_zoo_corvi import Corvi
from detector_zoo_inpx import training as inpx
from detector_zoo_patch_shuffle import training as patch_shuffle
from detector_zoo_stay_positive import training as stay_positive
from detector_zoo_ufd_clip import training as ufd_clip
from training_toys import ToySet, toy_set

from conftest import photo

PLUGINS = Path(stay_positive.__file__).parents[1]
CLASSES: dict[str, Any] = {
    "cnnspot": PositionRecipe,
    "corvi": PositionRecipe,
    "inpx": inpx.Recipe,
    "patch_shuffle": patch_shuffle.Recipe,
    "stay_positive": stay_positive.Recipe,
    "ufd_clip": ufd_clip.Recipe,
}
NARROW = {"architecture": "resnet_narrow", "stem": 4, "widths": [4, 6], "blocks": [1, 1], "strides": [1, 2]}
TINY: dict[str, Any] = {
    "batch": 4,
    "sides": [40, 48],
    "slices": {"validation": 0.25, "calibration": 0.25},
    "schedule": {"steps": 2, "every": 2},
    "pretrained": False,
}


def recipe_files() -> list[Path]:
    return sorted(path for name in CLASSES for path in (PLUGINS / f"detector_zoo_{name}" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToySet:
    torch.set_num_threads(1)
    return toy_set(tmp_path_factory.mktemp("toys"), 16)


def job(toys: ToySet, out: Path, method: str, recipe: str = "lite", **changes: Any) -> Job:
    """A few steps of a method's own recipe."""
    _, values = recipes.load(PLUGINS / f"detector_zoo_{method}" / "recipes", recipe)
    values = recipes.merge({k: v for k, v in values.items() if k != "schedule"}, {**TINY, **changes})
    values["augmentation"] = [{"random_crop": {"size": 32}}, {"flip": {"p": 0.5}}]
    if "pretrained" not in CLASSES[method].__dataclass_fields__:
        del values["pretrained"]
    return replace(toys.job(out, method), name=f"{method}.test", recipe=recipe, values=values)


@pytest.mark.parametrize("path", recipe_files(), ids=lambda p: f"{p.parents[1].name[13:]}.{p.stem}")
def test_every_recipe_can_be_read(path: Path) -> None:
    method = path.parents[1].name.removeprefix("detector_zoo_")
    recipe = build(CLASSES[method], yaml.safe_load(path.read_text()), path.name)
    assert Augmentation.of(recipe.augmentation)(_picture(), (0,)).image.width >= 96
    assert recipe.equalise
    assert recipe.summary


def _picture() -> Any:
    from detector_zoo.training.augment import Picture

    return Picture(photo(320, 300))


def test_every_method_has_the_published_recipe_and_one_for_two_cores() -> None:
    for method in CLASSES:
        assert {"paper", "lite"} <= set(recipes.names(PLUGINS / f"detector_zoo_{method}" / "recipes"))


def test_corvis_augmentation_is_in_the_published_order() -> None:
    _, values = recipes.load(PLUGINS / "detector_zoo_corvi" / "recipes")
    names = [next(iter(step)) for step in values["augmentation"]]
    expected = "random_resized_crop color_jitter grayscale cutout noise blur jpeg rot90 flip random_crop"
    assert " ".join(names) == expected
    assert values["augmentation"][-1]["random_crop"]["size"] == 96


class Narrow(PositionwiseDetector):
    """Any small network."""

    build = staticmethod(small.build)  # type: ignore[assignment]


@pytest.mark.parametrize("map_weight", [0.0, 0.5])
def test_positions_learn_from_images_to_a_detector(toys: ToySet, tmp_path: Path, map_weight: float) -> None:
    made = job(toys, tmp_path, "corvi", map_weight=map_weight, schedule={"steps": 40, "every": 20})
    values = {**made.values, "network": NARROW, "batch": 16, "optimiser": {"lr": 0.02}, "dropout": 0.0}
    fit_positions(replace(made, values=values), Narrow)
    found = artifact.load_folder(tmp_path)
    detector = Narrow.from_weights(found)
    real, fake = toys.samples[0], toys.samples[1]
    from PIL import Image

    scores = detector.score([Image.open(s.path).convert("RGB") for s in (real, fake)])
    assert scores[1] > scores[0]
    assert detector.heatmap([photo(40, 30)]).shape == (1, 30, 40)


def test_small_networks_say_where_their_positions_lie() -> None:
    for network in (NarrowResNet(4, (4, 8), (1, 2), (2, 2)), EfficientNetLite0(3), EfficientNetLite0(7)):
        network.eval()
        stride, radius = network.geometry.stride, network.geometry.radius
        side = 2 * radius + 1 + 4 * stride
        side += -side % stride
        x = torch.randn(1, 3, side, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole = network.features(x)
            assert whole.shape[2] == network.geometry.positions(side)
            assert whole.min() >= 0
            middle = whole.shape[2] // 2
            changed = x.clone()
            # Whatever lies further away than the radius is not seen.
            changed[:, :, : max(0, middle * stride - radius)] = 0
            changed[:, :, middle * stride + radius + 1 :] = 0
            assert torch.allclose(network.features(changed)[:, :, middle], whole[:, :, middle], atol=1e-5)
            logits = network(x)
            assert torch.allclose(logits[:, 0], whole.mean((2, 3)) @ network.fc.weight[0] + network.fc.bias, atol=1e-5)


def test_an_unknown_small_network_is_an_error() -> None:
    with pytest.raises(WeightsError, match="architecture 'vgg' is unknown"):
        small.build({"architecture": "vgg"})
    with pytest.raises(WeightsError, match="unexpected keyword argument 'depth'"):
        small.build({"architecture": "resnet_narrow", "depth": 3})
    with pytest.raises(WeightsError, match="stages is 9"):
        small.build({"architecture": "efficientnet_lite0", "stages": 9})
    assert isinstance(small.build({"conv1_stride": 1}).fc, nn.Linear)


def test_imagenet_weights_fit_whole_and_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EfficientNetLite0()
    fake = {key: torch.full_like(value, 2) for key, value in whole.trunk.state_dict().items()}
    monkeypatch.setattr(pretrained, "efficientnet_lite0", lambda: fake)
    for network in (whole, EfficientNetLite0(4)):
        before = network.fc.weight.clone()
        pretrained.fill(network, "efficientnet_lite0")
        assert (network.trunk.conv_stem.weight == 2).all()
        assert torch.equal(network.fc.weight, before)
    with pytest.raises(ZooError, match="no pretrained weights for resnet_narrow"):
        pretrained.fill(NarrowResNet(), "resnet_narrow")


@pytest.mark.parametrize("method", ["cnnspot", "corvi"])
def test_the_plugins_of_positionwise_networks_train(
    toys: ToySet, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"detector_zoo_{method}.training")
    detector = {"cnnspot": "CNNSpot", "corvi": "Corvi"}[method]
    # A small network in the place of a large one.
    monkeypatch.setattr(getattr(module, detector), "build", classmethod(lambda cls, config: small.build(NARROW)))
    module.fit(job(toys, tmp_path, method))
    spec = artifact.load_folder(tmp_path).spec
    assert spec.name == f"{method}.test"
    assert spec.preprocessing["exif_orientation"] == "ignore"


def test_patch_shuffle_trains_and_shuffles(toys: ToySet, tmp_path: Path) -> None:
    made = job(toys, tmp_path, "patch_shuffle", "paper")
    values = {
        **made.values,
        "network": {"patch": 8, "depth": 1},
        "preprocessing": {**made.values["preprocessing"], "crop": 16},
        "augmentation": [{"random_crop": {"size": 16}}, {"d4": {}}],
    }
    patch_shuffle.fit(replace(made, values=values))
    assert artifact.load_folder(tmp_path).tensors["classifier.weight"].shape == (1, 4 * 512)

    seen: list[Tensor | None] = []

    class Spy(nn.Module):
        slots = 4

        def forward(self, x: Tensor, order: Tensor | None) -> Tensor:
            seen.append(order)
            return x.mean((1, 2, 3))

    for shuffle in (True, False):
        recipe = build(patch_shuffle.Recipe, {**values, "shuffle": shuffle}, "r")
        torch.manual_seed(0)
        batch = Batch(torch.zeros(6, 3, 16, 16, dtype=torch.uint8), torch.ones(6))
        patch_shuffle._loss(recipe)(Spy(), batch)
    order, none = seen
    assert none is None
    assert order is not None
    assert (order.sort(1).values == torch.arange(4)).all()
    assert len(order.unique(dim=0)) > 1
    with pytest.raises(RecipeError, match="not a whole number of patches"):
        patch_shuffle.fit(replace(made, values={**values, "network": {"patch": 7}}))


def test_inpx_learns_from_masks(toys: ToySet, tmp_path: Path) -> None:
    network = {"library": "timm", "model": "test_resnet", "heatmap": "gradcam", "arguments": {}}
    made = job(toys, tmp_path, "inpx", mix={"pairs": 0.5})
    inpx.fit(replace(made, values={**made.values, "network": network}))
    assert artifact.load_folder(tmp_path).spec.config["model"] == "test_resnet"

    net = inpx.build_network(network).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(inpx._maps(net, x).mean((1, 2)), net(x)[:, 0], atol=1e-5)
    transformer = {"library": "timm", "model": "test_vit", "heatmap": "gradcam"}
    with pytest.raises(RecipeError, match="no map of positions"):
        inpx.fit(replace(made, values={**made.values, "network": transformer}))


def test_a_map_is_pulled_towards_the_mask() -> None:
    from detector_zoo.training.course import map_loss

    recipe = build(inpx.Recipe, yaml.safe_load((PLUGINS / "detector_zoo_inpx/recipes/lite.yaml").read_text()), "r")
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    batch = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(1), mask)
    right = torch.tensor([[[-3.0, 5.0], [-3.0, 5.0]]])

    def loss(grid: Tensor) -> float:
        return float(map_loss(recipe, lambda network, x: grid)(nn.Identity(), batch))

    assert loss(right) < loss(right.flip(2)) - 1
    with pytest.raises(WeightsError, match="from images"):
        map_loss(recipe, lambda network, x: right)(nn.Identity(), replace(batch, masks=None))


def test_ufd_puts_a_head_on_a_small_frozen_network(
    toys: ToySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(network: nn.Module, architecture: str) -> None:
        torch.manual_seed(3)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)

    monkeypatch.setattr(pretrained, "fill", fill)
    made = job(toys, tmp_path, "ufd_clip", versions=1)
    ufd_clip.fit(replace(made, values={**made.values, "network": NARROW, "l2": 0.01}))
    tensors = artifact.load_folder(tmp_path).tensors
    expected: Any = small.build(NARROW)
    fill(expected, "")
    assert torch.equal(tensors["conv1.weight"], expected.conv1.weight.half())
    assert not torch.equal(tensors["fc.weight"], expected.fc.weight.half())
    with pytest.raises(RecipeError, match=r"network\.model and backbone belong together"):
        ufd_clip.fit(replace(made, values={**made.values, "backbone": "backbone.x"}))


@pytest.mark.parametrize("nonnegative", [True, False])
def test_stay_positive_retrains_the_last_layer_alone(
    toys: ToySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonnegative: bool
) -> None:
    monkeypatch.setattr(Corvi, "build", classmethod(lambda cls, config: small.build(NARROW)))
    torch.manual_seed(5)
    base = small.build(NARROW).eval()
    spec = WeightSpec(
        name="corvi.test", sha256="0" * 64, preprocessing={"mean": [0.5] * 3, "std": [0.2] * 3}, config={}
    )
    monkeypatch.setattr(stay_positive, "_base", lambda name: Weights(spec, base.state_dict()))
    made = job(toys, tmp_path, "stay_positive", versions=1, nonnegative=nonnegative)
    schedule = {"steps": 60, "every": 30}
    stay_positive.fit(replace(made, values={**made.values, "batch": 16, "schedule": schedule}))
    tensors = load_file(tmp_path / "weights.safetensors")
    for key, value in base.state_dict().items():
        if not key.startswith("fc.") and value.is_floating_point():
            assert torch.equal(tensors[key], value.half()), key
    assert bool((tensors["fc.weight"] >= 0).all()) is nonnegative
    assert np.isfinite(float(tensors["fc.bias"]))
    config = artifact.load_folder(tmp_path).spec.config
    assert config.get("nonnegative", True) is nonnegative
    assert "corvi.test" in (tmp_path / "CARD.md").read_text()


def test_a_base_is_a_folder_or_a_name(toys: ToySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(toys, tmp_path / "base", "corvi")
    fit_positions(replace(made, values={**made.values, "network": NARROW}), Narrow)
    found = stay_positive._base(str(tmp_path / "base"))
    assert found.spec.name == "corvi.test"
    with pytest.raises(ZooError, match="no weights to start from"):
        stay_positive._base("dummy")
    asked: list[str] = []

    def load_weights(spec: WeightSpec, progress: bool) -> Weights:
        asked.append(spec.name)
        return Weights(spec, {"head.weight": torch.zeros(1)})

    monkeypatch.setattr(weights, "load_weights", load_weights)
    with pytest.raises(WeightsError, match=r"corvi\.latent: has no last layer"):
        stay_positive._base("corvi.latent")
    assert asked == ["corvi.latent"]
