"""Patch-shuffle: its network against an independent one, its mean over permutations against drawing them all."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from detector_zoo import load, registry
from detector_zoo.convert import SPEC_METADATA
from detector_zoo.detector import Explainer, Localizer, Weights
from detector_zoo.errors import WeightsError
from detector_zoo.plugins import list_detectors
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.registry import WeightSpec
from detector_zoo.scoring import Options, run
from detector_zoo.weights_import import import_file
from detector_zoo_patch_shuffle.model import PatchShuffle
from detector_zoo_patch_shuffle.network import FEATURES, PatchNetwork, cut

from conftest import encoded, photo

TOLERANCE = 1e-4
PAPER = registry.registry().specs["patch_shuffle.official"]


def spec(patch: int, depth: int, crop: int) -> WeightSpec:
    preprocessing = {**PAPER.preprocessing, "crop": crop}
    return WeightSpec(name="patch_shuffle.test", config={"patch": patch, "depth": depth}, preprocessing=preprocessing)


def tensors(patch: int, depth: int, crop: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights that neither fade nor blow up what goes through; numpy draws alike in every version."""
    rng = np.random.default_rng(seed)
    state: dict[str, Tensor] = {}
    for key, value in PatchNetwork(patch, depth, (crop // patch) ** 2).state_dict().items():
        shape = tuple(value.shape)
        if key.endswith("num_batches_tracked"):
            continue
        if len(shape) == 4:
            drawn = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        elif key == "classifier.weight":
            drawn = rng.normal(0, 8 / shape[1] ** 0.5, shape)
        elif key.endswith(("running_var", "weight")):
            drawn = rng.uniform(0.8, 1.2, shape)
        else:
            drawn = rng.normal(0, 0.1, shape)
        state[key] = torch.from_numpy(drawn.astype(np.float32))
    return state


def detector_of(patch: int, depth: int, crop: int, seed: int = 0) -> PatchShuffle:
    return PatchShuffle.from_weights(Weights(spec=spec(patch, depth, crop), tensors=tensors(patch, depth, crop, seed)))


@pytest.fixture(scope="module")
def detector() -> PatchShuffle:
    """Sixteen patches of 16 px."""
    return detector_of(16, 2, 64)


# --- the network


class Reference(nn.Module):
    """What methods and repository describe, of torchvision's parts, one image and one patch at a time."""

    def __init__(self, patch: int, depth: int, crop: int) -> None:
        super().__init__()
        self.patch, self.crop = patch, crop
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64, eps=0.0001), nn.ReLU()]
        width = 64
        for _ in range(3):
            down = nn.Sequential(nn.Conv2d(width, 2 * width, 1, 2, bias=False), nn.BatchNorm2d(2 * width))
            block = torchvision.models.resnet.BasicBlock
            layers += [block(width, 2 * width, 2, down), block(2 * width, 2 * width)]
            width *= 2
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(width * (crop // patch) ** 2, 1)

    def features(self, image: Image.Image) -> list[Tensor]:
        pixels = torchvision.transforms.functional.center_crop(image, [self.crop, self.crop])
        x = torchvision.transforms.functional.to_tensor(pixels)
        starts = range(0, self.crop, self.patch)
        return [self.trunk(x[None, :, i : i + self.patch, j : j + self.patch]) for i in starts for j in starts]

    def forward(self, image: Image.Image) -> Tensor:
        return self.linear(torch.cat(self.features(image), 1))[0, 0]


def reference(patch: int, depth: int, crop: int, state: dict[str, Tensor]) -> Reference:
    """The reference with the same weights, which both networks hold in the order in which they use them."""
    network = Reference(patch, depth, crop).eval().requires_grad_(False)
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    # A block of timm's registers its shortcut last, as torchvision's does, so the order is one and the same.
    values = list(state.values())
    assert [network.state_dict()[key].shape for key in keys] == [value.shape for value in values]
    network.load_state_dict(dict(zip(keys, values, strict=True)), strict=False)
    return network


@pytest.mark.parametrize("patch", [16, 32])
@pytest.mark.parametrize("size", [(64, 64), (65, 66), (67, 101), (300, 200), (40, 70), (63, 21), (1, 1)])
def test_logits_are_the_reference_s(patch: int, size: tuple[int, int]) -> None:
    state = tensors(patch, 2, 64)
    image = photo(*size)
    network = PatchNetwork(patch, 2, (64 // patch) ** 2).eval()
    network.load_state_dict(state, strict=False)
    pixels = Preprocessing.of("test", spec(patch, 2, 64).preprocessing).pixels(image)
    with torch.inference_mode():
        found = network(pixels[None] / 255)
        torch.testing.assert_close(found[0], reference(patch, 2, 64, state)(image), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("patch", "size"), [(64, (301, 257)), (64, (131, 200)), (32, (256, 255))])
def test_the_papers_networks_are_the_reference_s(patch: int, size: tuple[int, int]) -> None:
    """Folded, channels last and in the detector's own batches; the mean over permutations taken by the definition."""
    state = tensors(patch, 18, 256)
    found = PatchShuffle.from_weights(Weights(spec=spec(patch, 18, 256), tensors=state))
    image = photo(*size)
    network = reference(patch, 18, 256, state)
    with torch.inference_mode():
        features = torch.cat(network.features(image))
        # Every patch stands in every slot equally often.
        slots = network.linear.weight.view(-1, FEATURES)
        expected = (slots @ features.T).mean(0).sum() + network.linear.bias[0]
        logit = found.logits(found.transform(image)[None])[0]
    torch.testing.assert_close(logit, expected, atol=TOLERANCE, rtol=0)


def test_patches_are_cut_row_by_row() -> None:
    image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)
    patches = cut(image, 2)
    assert patches.shape == (1, 6, 2, 2, 2)
    assert torch.equal(patches[0, 4], image[0, :, 2:4, 2:4])


def test_every_image_can_have_its_own_order() -> None:
    network = PatchNetwork(8, 1, 4).eval()
    images = torch.rand(2, 3, 16, 16)
    orders = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    with torch.inference_mode():
        together = network(images, orders)
        alone = torch.cat([network(image[None], order) for image, order in zip(images, orders, strict=True)])
        torch.testing.assert_close(together, alone)
        torch.testing.assert_close(together[1:], network(images[1:]))
        moved = images[:1].clone()
        moved[..., :8, :8], moved[..., 8:, 8:] = images[:1, :, 8:, 8:], images[:1, :, :8, :8]
        torch.testing.assert_close(network(images[:1], torch.tensor([3, 1, 2, 0])), network(moved))


# --- permutations


def test_the_logit_is_the_mean_over_all_permutations() -> None:
    state = tensors(16, 2, 32)
    network = PatchNetwork(16, 2, 4).eval()
    network.load_state_dict(state, strict=False)
    found = detector_of(16, 2, 32)
    batch = torch.stack([found.transform(photo(40, 32, seed)) for seed in range(2)])
    with torch.inference_mode():
        every = torch.stack([network(batch / 255, torch.tensor(p)) for p in itertools.permutations(range(4))])
        assert every.std(0).min() > 100 * TOLERANCE
        torch.testing.assert_close(found.logits(batch), every.mean(0), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("size", "patches"), [((48, 32), 6), ((40, 16), 2)])
def test_the_logit_of_more_or_fewer_patches_is_the_mean_over_all_draws(size: tuple[int, int], patches: int) -> None:
    state = tensors(16, 2, 32)
    network = PatchNetwork(16, 2, 4).eval()
    network.load_state_dict(state, strict=False)
    scored = WeightSpec(
        name="patch_shuffle.test",
        config={"patch": 16, "depth": 2, "slots": 4},
        preprocessing={**PAPER.preprocessing, "crop": 64, "multiple": 16},
    )
    found = PatchShuffle.from_weights(Weights(spec=scored, tensors=state))
    image = photo(*size)
    pixels = found.transform(image)[None]
    draws = itertools.permutations(range(patches), 4) if patches > 4 else itertools.product(range(patches), repeat=4)
    with torch.inference_mode():
        features = network.encoder(cut(pixels, 16)[0] / 255)
        assert len(features) == patches
        every = torch.stack([network.classifier(features[list(draw)].flatten())[0] for draw in draws])
        assert every.std() > 100 * TOLERANCE
        torch.testing.assert_close(found.logits(pixels)[0], every.mean(), atol=TOLERANCE, rtol=0)
    middle = found.heatmap([image])[0][:, (size[0] - 16 * (size[0] // 16)) // 2 :][:, : 16 * (size[0] // 16)]
    assert middle.mean() == pytest.approx(float(every.mean()), abs=TOLERANCE)
    assert sum(found.evidence(image).values()) == pytest.approx(float(every.mean()), abs=TOLERANCE)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(16)), seed=st.integers(0, 1000))
def test_the_order_of_patches_does_not_change_a_score(detector: PatchShuffle, order: list[int], seed: int) -> None:
    image = photo(64, 64, seed)
    rows = np.asarray(image).reshape(4, 16, 4, 16, 3).transpose(0, 2, 1, 3, 4).reshape(16, 16, 16, 3)
    shuffled = rows[order].reshape(4, 4, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(64, 64, 3)
    scores = detector.score([image, Image.fromarray(shuffled)])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


# --- scores


GOLDEN = {64: [-9.2520, -9.6264], 32: [17.4273, 16.7435]}


@pytest.mark.parametrize("tag", ["official", "patch32"])
def test_golden_scores(tag: str) -> None:
    """Of the catalogue's configurations, with weights that numpy draws."""
    known = registry.registry().specs[f"patch_shuffle.{tag}"]
    patch = known.config["patch"]
    found = PatchShuffle.from_weights(Weights(spec=known, tensors=tensors(patch, 18, 256)))
    assert found.score([photo(300, 270), photo(256, 256, 1)]) == pytest.approx(GOLDEN[patch], abs=2e-3)


def test_scores_differ_but_not_by_company_or_memory(detector: PatchShuffle) -> None:
    images = [photo(64 + 9 * i, 90 - 7 * i, i) for i in range(5)]
    together = detector.score(images)
    assert np.ptp(together) > 100 * TOLERANCE
    assert np.concatenate([detector.score([image]) for image in images]) == pytest.approx(together, abs=TOLERANCE)
    assert detector.score(images[::-1])[::-1] == pytest.approx(together, abs=TOLERANCE)
    frugal = detector_of(16, 2, 64)
    frugal.memory = 1  # room for less than a patch: one at a time
    assert frugal.score(images) == pytest.approx(together, abs=TOLERANCE)


def test_what_lies_outside_the_crop_does_not_count(detector: PatchShuffle) -> None:
    image = np.asarray(photo(100, 90)).copy()
    framed = image.copy()
    framed[:10], framed[80:], framed[:, :15], framed[:, 85:] = 0, 0, 0, 0
    assert detector.score([Image.fromarray(image)]) == pytest.approx(
        detector.score([Image.fromarray(framed)]), abs=1e-6
    )


# --- maps and evidence


def test_the_map_s_mean_is_the_logit(detector: PatchShuffle) -> None:
    images = [photo(64, 64, seed) for seed in range(3)]
    heat = detector.heatmap(images)
    assert heat.shape == (3, 64, 64)
    assert heat.dtype == np.float32
    assert heat.mean((1, 2)) == pytest.approx(detector.score(images), abs=TOLERANCE)
    patches = heat.reshape(3, 4, 16, 4, 16)
    assert np.ptp(patches, (2, 4)).max() == 0
    assert np.ptp(patches[0, :, 0, :, 0]) > 0.01


def test_the_map_points_at_a_planted_change() -> None:
    found = detector_of(16, 2, 64)
    base = np.asarray(photo(72, 70)).copy()
    changed = base.copy()
    changed[3 + 32 : 3 + 48, 4 + 16 : 4 + 32] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    pictures = [Image.fromarray(base), Image.fromarray(changed)]
    network = found.network
    with torch.inference_mode():
        patches = torch.stack([cut(found.transform(p)[None], 16)[0, 9] for p in pictures])
        before, after = network.encoder(found.inputs.normalise(patches))
        # A classifier for which this change, and what looks like it, is what generated images look like.
        network.classifier.weight.copy_((after - before).repeat(16)[None])
    heat = found.heatmap(pictures)
    assert heat.shape == (2, 70, 72)
    inside = np.zeros((70, 72), bool)
    inside[35:51, 20:36] = True
    difference = heat[1] - heat[0]
    assert difference[inside].min() > 100 * TOLERANCE
    assert np.abs(difference[~inside]).max() < TOLERANCE
    assert inside[np.unravel_index(heat[1].argmax(), inside.shape)]


@pytest.mark.parametrize("size", [(1, 1), (130, 50), (33, 64), (97, 101)])
def test_a_map_is_as_large_as_its_image(detector: PatchShuffle, size: tuple[int, int]) -> None:
    heat = detector.heatmap([photo(*size), photo(*size, 1)])
    assert heat.shape == (2, size[1], size[0])
    assert np.isfinite(heat).all()


def test_evidence_adds_up_to_the_logit(detector: PatchShuffle) -> None:
    image = photo(80, 80)
    parts = detector.evidence(image)
    assert set(parts) == {"real", "fake", "bias"}
    assert parts["real"] < 0 < parts["fake"]
    assert sum(parts.values()) == pytest.approx(detector.score([image])[0], abs=TOLERANCE)


def test_capabilities(detector: PatchShuffle) -> None:
    (info,) = (info for info in list_detectors() if info.name == "patch_shuffle")
    assert info.capabilities >= {"localize", "explain"}
    assert isinstance(detector, Localizer)
    assert isinstance(detector, Explainer)


# --- weights


def test_loading_is_strict() -> None:
    good = tensors(16, 1, 32)
    first = "encoder.stem.weight"
    cases = {
        "missing": ({k: v for k, v in good.items() if k != first}, rf"'{first}' of shape \(64, 3, 3, 3\).*missing"),
        "shape": (
            good | {"classifier.weight": torch.zeros(1, 512)},
            r"'classifier.weight' .*\(1, 2048\), got \(1, 512\)",
        ),
        "extra": (good | {"transformer.weight": torch.zeros(2)}, "no tensor 'transformer.weight'"),
    }
    for given_tensors, message in cases.values():
        with pytest.raises(WeightsError, match=message):
            PatchShuffle.from_weights(Weights(spec=spec(16, 1, 32), tensors=given_tensors))


@pytest.mark.parametrize(
    ("config", "crop"),
    [({"patch": 48, "depth": 1}, 256), ({"depth": 1}, 256), ({"patch": 0}, 256), ({"patch": 64}, None)],
)
def test_a_crop_is_a_whole_number_of_patches(config: dict[str, Any], crop: int | None) -> None:
    odd = WeightSpec(name="patch_shuffle.odd", config=config, preprocessing={**PAPER.preprocessing, "crop": crop})
    with pytest.raises(WeightsError, match=r"patch_shuffle.odd: crop .* is not a whole number of patches"):
        PatchShuffle.from_weights(Weights(spec=odd, tensors={}))


@pytest.mark.parametrize("tag", [".official", ".patch32"])
def test_without_weights_it_says_that_none_were_published(tag: str) -> None:
    with pytest.raises(WeightsError, match="no weights were published") as raised:
        load(f"patch_shuffle{tag}")
    assert "zoo weights import patch_shuffle.mine FILE" in str(raised.value.hint)


def test_own_weights_are_imported_and_score_alike_everywhere(tmp_path: Path, detector: PatchShuffle) -> None:
    file = tmp_path / "own.safetensors"
    own = {"config": spec(16, 2, 64).config, "preprocessing": spec(16, 2, 64).preprocessing}
    save_file(tensors(16, 2, 64), file, {SPEC_METADATA: json.dumps(own)})
    import_file("patch_shuffle.mine", file, like="patch_shuffle.official")
    mine = load("patch_shuffle.mine", device="cpu")

    paths = []
    for seed, size in enumerate([(90, 70), (64, 64), (30, 100), (90, 70)]):
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(encoded(photo(*size, seed)))
    expected = detector.score([Image.open(path) for path in paths])
    for order, options in (
        (paths, Options(batch_size=1, workers=0)),
        (paths[::-1], Options(batch_size=3, workers=2)),
    ):
        rows = [row for rows in run(map(str, order), [mine], options) for row in rows]
        found = {row.path: row.log_odds for row in rows}
        assert [found[str(path)] for path in paths] == pytest.approx(expected, abs=TOLERANCE)
    sources = [paths[0], paths[0].read_bytes(), np.asarray(Image.open(paths[0])), Image.open(paths[0])]
    assert mine.score(sources) == pytest.approx(expected[0], abs=TOLERANCE)
    assert mine.heatmap(paths[0]).shape == (70, 90)


def test_a_file_of_another_configuration_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(tensors(32, 1, 64), file)
    with pytest.raises(WeightsError, match=r"patch_shuffle.mine: expected tensor 'encoder.body.3.weight'"):
        import_file("patch_shuffle.mine", file, like="patch_shuffle.patch32")
