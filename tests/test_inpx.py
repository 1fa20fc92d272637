"""INP-X: its four networks, their folded and batched passes, and whether their heatmaps point at a planted change."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import InterpolationMode, v2

import tiny_clip
from detector_zoo import load, registry
from detector_zoo.cli import main
from detector_zoo.detector import Localizer, Weights
from detector_zoo.errors import PluginError, WeightsError
from detector_zoo.networks import attributions
from detector_zoo.plugins import list_detectors
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.registry import WeightSpec
from detector_zoo.weights_import import import_file
from detector_zoo_inpx.model import INPX
from detector_zoo_inpx.networks import CLIPClassifier, Convolutional, Transformer, build, view

from conftest import photo

TAGS = ("resnet50", "efficientnet_b0", "vit_b16", "clip_vit_b32")
SIDE = 64
VIT = {"library": "timm", "model": "test_vit", "arguments": {"img_size": SIDE}}
CLIP = {"library": "open_clip", "model": tiny_clip.NAME}
TINY: Mapping[str, Mapping[str, Any]] = {
    "resnet": {"library": "timm", "model": "test_resnet", "heatmap": "gradcam"},
    "efficientnet": {"library": "timm", "model": "test_efficientnet", "heatmap": "gradcam"},
    "vit": VIT | {"heatmap": "rollout"},
    "vit gradcam": VIT | {"heatmap": "gradcam"},
    "clip": CLIP | {"heatmap": "rollout"},
    "clip gradcam": CLIP | {"heatmap": "gradcam"},
}
GOLDEN = {
    "resnet": [1.3263, 1.2676, 1.2161],
    "efficientnet": [-0.5657, -0.1616, 0.1013],
    "vit": [0.0591, -1.0346, 2.0388],
    "clip": [-2.9237, -2.2617, -1.6360],
}


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny_clip.register(tmp_path_factory.mktemp("open_clip"))


def spec_of(kind: str) -> WeightSpec:
    side = tiny_clip.SIDE if kind.startswith("clip") else SIDE
    inputs = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": [side, side], "exif_orientation": "ignore"}
    return WeightSpec(name=f"inpx.{kind}", config=TINY[kind], preprocessing=inputs)


def lively(network: nn.Module, side: int = SIDE) -> dict[str, Tensor]:
    """Tensors of one seed, under which images differ at the other end: normalisations are fitted to some pictures."""
    network.load_state_dict(tiny_clip.seeded(network), strict=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    inputs = Preprocessing.of("test", spec_of("resnet").preprocessing | {"resize": [side, side]})
    with torch.no_grad():
        network.train()(inputs.normalise(torch.stack([inputs.pixels(photo(side, side, 50 + i)) for i in range(8)])))
    network.eval()
    return network.state_dict()


def detector(kind: str) -> INPX:
    spec = spec_of(kind)
    network = build(spec.config)
    tensors = tiny_clip.seeded(network) if kind.startswith("clip") else lively(network)
    return INPX.from_weights(Weights(spec, tensors))


def official(tag: str) -> WeightSpec:
    return registry.registry().specs[f"inpx.{tag}"]


# ----------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("tag", "parameters", "kind"),
    [
        ("resnet50", 23_510_081, Convolutional),
        ("efficientnet_b0", 4_008_829, Convolutional),
        ("vit_b16", 85_799_425, Transformer),
        ("clip_vit_b32", 87_849_729, Transformer),
    ],
)
def test_the_four_of_the_registry(tag: str, parameters: int, kind: type) -> None:
    spec = official(tag)
    assert (spec.source, spec.verified) == (None, False)
    assert spec.why
    assert f"zoo weights import inpx.mine FILE --like inpx.{tag}" in spec.how_to_get
    with torch.device("meta"):
        network = build(spec.config)
        assert isinstance(view(network, spec.config["heatmap"]), kind)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    side = spec.preprocessing["resize"][0]
    size = Preprocessing.of(spec.name, spec.preprocessing).pixels(photo(70, 50)).shape
    assert size == (3, side, side)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"library": "keras", "model": "resnet50", "heatmap": "gradcam"}, "library 'keras' is not timm, open_clip"),
        ({"library": "timm", "model": "resnet51", "heatmap": "gradcam"}, "timm knows no model 'resnet51'"),
        (TINY["resnet"] | {"heatmap": "rollout"}, "rollout follows attention"),
        (TINY["vit"] | {"heatmap": "cam"}, "heatmap 'cam' is not gradcam, rollout"),
        ({"library": "timm", "model": "test_vit4", "heatmap": "rollout"}, "has to judge by its class token"),
    ],
)
def test_a_configuration_that_means_nothing(config: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        view(build(config), config["heatmap"])


@pytest.mark.parametrize("model", ["efficientnet_b0", "resnet50"])
def test_folding_changes_nothing(model: str) -> None:
    config = {"library": "timm", "model": model, "heatmap": "gradcam"}
    network = build(config)
    tensors = lively(network)
    spec = WeightSpec(name="inpx.test", config=config, preprocessing=spec_of("resnet").preprocessing)
    folded = INPX.from_weights(Weights(spec, tensors))
    assert not [module for module in folded.network.modules() if isinstance(module, nn.BatchNorm2d)]
    pixels = torch.stack([folded.transform(photo(SIDE, SIDE, i)) for i in range(3)])
    with torch.inference_mode():
        expected = network(folded.inputs.normalise(pixels))[:, 0]
        assert expected.std() > 0.01
        torch.testing.assert_close(folded.logits(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tag", TAGS)
@settings(max_examples=5, deadline=None)
@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)))
def test_the_input_equals_torchvisions(tag: str, size: tuple[int, int]) -> None:
    constants = official(tag).preprocessing
    ours, image = Preprocessing.of(tag, constants), photo(*size)
    mode = InterpolationMode(constants["interpolation"])
    pixels = v2.Compose([v2.Resize(constants["resize"], mode), v2.PILToTensor()])(image)
    assert torch.equal(ours.pixels(image), pixels)
    steps = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(constants["mean"], constants["std"])]
    torch.testing.assert_close(ours.normalise(pixels[None])[0], v2.Compose(steps)(pixels), atol=1e-6, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_scores(kind: str) -> None:
    side = tiny_clip.SIDE if kind.startswith("clip") else SIDE
    found = detector(kind).score([photo(*size, seed=i) for i, size in enumerate([(side, side), (50, 141), (20, 64)])])
    assert found[0] == pytest.approx(GOLDEN[kind][0], abs=1e-3)
    # Pillow 12 and 13 round differently when they resize, by a grey level here and there.
    assert found[1:] == pytest.approx(GOLDEN[kind][1:], abs=5e-2)


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_score_does_not_depend_on_its_batch(kind: str) -> None:
    found = detector(kind)
    images = [photo(40 + i, 60 - i, i) for i in range(9)]
    together = found.score(images)
    assert np.ptp(together) > 1e-2
    assert [found.score([image])[0] for image in images] == pytest.approx(together, abs=1e-4)
    assert found.score(images[::-1])[::-1] == pytest.approx(together, abs=1e-4)


# --------------------------------------------------------------------------------------------------------- heatmaps


@pytest.mark.parametrize("kind", TINY)
def test_a_heatmap_leaves_no_trace(kind: str) -> None:
    found = detector(kind)
    assert isinstance(found, Localizer)
    images = [photo(90, 70, i) for i in range(2)]
    before = found.score(images)
    with torch.inference_mode():
        inside = found.heatmap(images)
    with torch.no_grad():
        outside = found.heatmap(images)
    assert inside.shape == (2, 70, 90)
    assert inside.dtype == np.float32
    assert np.ptp(inside) > 0
    np.testing.assert_allclose(inside, outside, atol=1e-6)
    assert not np.allclose(inside[0], inside[1])
    assert all(p.grad is None and not p.requires_grad for p in found.network.parameters())
    hooks = [m for m in found.network.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
    assert not hooks
    assert np.array_equal(found.score(images), before)


@pytest.mark.parametrize("kind", ["resnet", "efficientnet"])
def test_the_map_of_a_convolutional_network_adds_up_to_its_logit(kind: str) -> None:
    found = detector(kind)
    network: Any = found.network
    x = torch.randn(2, 3, 96, 64)
    cam = attributions.grad_cam(lambda x: network(x)[:, 0], network.global_pool, x)
    assert cam.shape == (2, 3, 2)
    head = network.get_classifier()
    torch.testing.assert_close(cam.sum((1, 2)) + head.bias, network(x)[:, 0], atol=1e-4, rtol=1e-4)
    # Class activation mapping (Zhou et al., CVPR 2016) is the same map by another way.
    maps = network.forward_features(x)
    expected = torch.einsum("nchw,c->nhw", maps, head.weight[0]) / cam[0].numel()
    torch.testing.assert_close(cam, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_rollout_equals_the_product_of_the_matrices(kind: str) -> None:
    found = detector(kind)
    look = found._look
    assert isinstance(look, Transformer)
    side = found.transform(photo()).shape[-1]
    x, grid = torch.randn(2, 3, side, side), (side // look.patch,) * 2
    inputs: list[Tensor] = []
    hooks = [
        block.get_submodule(look.normalisation).register_forward_hook(lambda m, a, out: inputs.append(out))
        for block in look.blocks
    ]
    with torch.no_grad():
        found.network(x)
    for hook in hooks:
        hook.remove()
    product = torch.eye(inputs[0].shape[1]).expand(2, -1, -1)
    for block, tokens in zip(look.blocks, inputs, strict=True):
        attn: Any = block.attn
        if kind == "clip":
            both, heads = functional.linear(tokens, attn.in_proj_weight, attn.in_proj_bias), attn.num_heads
        else:
            both, heads = attn.qkv(tokens), attn.num_heads
        q, k, _ = both.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
        product = (weights + torch.eye(weights.shape[-1])) / 2 @ product
    shares = attributions.rollout(found.network, look.blocks, x, grid)
    torch.testing.assert_close(shares, product[:, 0, 1:].reshape(2, *grid), atol=1e-6, rtol=1e-4)
    assert (shares > 0).all()
    assert (shares.sum((1, 2)) < 1).all()


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_tokens_gradient_times_its_activation(kind: str) -> None:
    found = detector(kind)
    look = found._look
    assert isinstance(look, Transformer)
    side = found.transform(photo()).shape[-1]
    x, grid = torch.randn(2, 3, side, side), (side // look.patch,) * 2
    layer = look.blocks[-1].get_submodule(look.normalisation)
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, output: kept.append(output.retain_grad() or output))
    found.network(x.clone().requires_grad_())[:, 0].sum().backward()
    hook.remove()
    assert kept[0].grad is not None
    expected = (kept[0].grad * kept[0]).sum(-1)[:, 1:].reshape(2, *grid)
    cam = attributions.token_cam(lambda x: found.network(x)[:, 0], layer, x, grid)
    assert cam.std() > 1e-4
    torch.testing.assert_close(cam, expected.detach(), atol=1e-5, rtol=1e-4)


def test_positions_are_spread_to_where_they_lie() -> None:
    grid = torch.zeros(1, 3, 4)
    grid[0, 1, 2] = 1
    convolutional = attributions.spread(grid, 70, 100, 32, 0)[0]
    assert convolutional.argmax() == 32 * 100 + 64
    assert convolutional[32, 48] == pytest.approx(0.5)
    patches = attributions.spread(grid, 48, 64, 16, 7.5)[0]
    assert (patches == patches.max()).nonzero().tolist() == [[r, c] for r in (23, 24) for c in (39, 40)]
    constant = attributions.spread(torch.full((2, 3, 4), 7.0), 70, 100, 32, 0)
    torch.testing.assert_close(constant, torch.full((2, 70, 100), 7.0))
    expected = functional.interpolate(torch.arange(12.0).view(1, 1, 3, 4), (48, 64), mode="bilinear")[0]
    torch.testing.assert_close(attributions.spread(torch.arange(12.0).view(1, 3, 4), 48, 64, 16, 7.5), expected)


@pytest.mark.parametrize("model", ["resnet50", "efficientnet_b0"])
def test_positions_of_the_convolutional_networks_lie_where_they_are_said_to(model: str) -> None:
    """What a position depends on is symmetric around the pixel that `Convolutional` calls its centre."""
    network: Any = build({"library": "timm", "model": model}).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    if hasattr(network, "maxpool"):  # whose gradient would go to one of several equal pixels
        network.maxpool = nn.AvgPool2d(3, 2, 1)
    look = view(network, "gradcam")
    assert isinstance(look, Convolutional)
    x = torch.ones(1, 3, 257, 257, requires_grad=True)
    maps = network.forward_features(x)
    assert maps.shape[-1] == 9
    maps[0, :, 4, 4].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0).sum(0)
    centre = (seen * torch.arange(257)).sum() / seen.sum()
    assert float(centre) == pytest.approx(4 * look.stride, abs=0.5)


def test_without_captum_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(PluginError, match="needs captum") as caught:
        detector("resnet").heatmap([photo()])
    assert caught.value.hint == "pip install 'detector-zoo[heatmaps]'"
    assert detector("vit").heatmap([photo()]).shape == (1, 64, 96), "rollout needs none"


# -------------------------------------------------------------------------------------------------- planted changes


def planted(count: int, side: int, seed: int, boxes: tuple[int, int]) -> tuple[list[Image.Image], Tensor, Tensor]:
    """Pictures in pairs, the second of each with a faint pattern in a box: (pictures, labels, masks of the boxes)."""
    random = np.random.default_rng(seed)
    tile = np.random.default_rng(99).normal(0, 40, (4, 4, 3))
    pattern = np.tile(tile, (side // 4, side // 4, 1))
    images, masks = [], np.zeros((count, side, side), bool)
    for i in range(count):
        pixels = np.asarray(photo(side, side, 1000 * seed + i // 2), float)
        if i % 2:
            height, width = random.integers(*boxes, 2)
            top, left = random.integers(side - height + 1), random.integers(side - width + 1)
            masks[i, top : top + height, left : left + width] = True
            pixels = pixels + pattern * masks[i][..., None]
        images.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return images, torch.arange(count) % 2, torch.from_numpy(masks)


def pointing(found: INPX, images: list[Image.Image], masks: Tensor) -> tuple[float, float]:
    """How much denser a map is inside the box than on average (energy), and how well it ranks pixels (AUROC)."""
    energies, ranks = [], []
    for image, mask in zip(images, masks.numpy(), strict=True):
        heat = found.heatmap([image])[0]
        energy = np.clip(heat, 0, None) + 1e-12
        energies.append(energy[mask].mean() / energy.mean())
        order = heat.ravel().argsort().argsort()[mask.ravel()]
        ranks.append((order.sum() - mask.sum() * (mask.sum() - 1) / 2) / (mask.sum() * (~mask).sum()))
    return float(np.mean(energies)), float(np.mean(ranks))


@pytest.mark.parametrize("kind", ["resnet", "efficientnet"])
def test_gradcam_points_at_a_planted_change(kind: str) -> None:
    """On random features, with a linear layer fitted in closed form."""
    side = 192
    spec = spec_of(kind)
    network: Any = build(spec.config)
    lively(network, side)
    inputs = Preprocessing.of("test", spec.preprocessing | {"resize": [side, side]})
    images, labels, _ = planted(120, side, 1, (48, 96))
    with torch.no_grad():
        batch = inputs.normalise(torch.stack([inputs.pixels(image) for image in images]))
        features = network.forward_head(network.forward_features(batch), pre_logits=True).double()
    centre = features.mean(0)
    spread = (features - centre).T @ (features - centre)
    spread += spread.diagonal().mean() * torch.eye(len(centre))
    weight = torch.linalg.solve(spread, (features - centre).T @ (labels - 0.5).double())
    head = network.get_classifier()
    with torch.no_grad():
        head.weight.copy_(weight[None])
        head.bias.fill_(-float(weight @ centre))
    spec = WeightSpec(name="inpx.test", config=spec.config, preprocessing=spec.preprocessing | {"resize": [side] * 2})
    found = INPX.from_weights(Weights(spec, network.state_dict()))
    images, _, masks = planted(30, side, 2, (48, 96))
    scores = found.score(images)
    assert (scores[1::2] > scores[::2]).mean() > 0.9
    energy, rank = pointing(found, images[1::2], masks[1::2])
    print(kind, energy, rank)
    assert energy > 1.4
    assert rank > 0.68


SMALL_VIT = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 4}


def trained(network: nn.Module, inputs: Preprocessing, side: int) -> None:
    images, labels, _ = planted(256, side, 3, (8, 17))
    x = inputs.normalise(torch.stack([inputs.pixels(image) for image in images]))
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        chosen = torch.randperm(len(x), generator=generator)[:32]
        loss = functional.binary_cross_entropy_with_logits(network(x[chosen])[:, 0], labels[chosen].float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.fixture(scope="module", params=["vit", "clip"])
def learnt(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and tensors of a small transformer that has learnt to find the planted pattern."""
    config = VIT | {"arguments": SMALL_VIT} if request.param == "vit" else CLIP
    torch.manual_seed(0)
    network = build(config)
    if isinstance(network, CLIPClassifier):
        network.load_state_dict({key: value * 0.5 for key, value in tiny_clip.seeded(network).items()})
    trained(network, Preprocessing.of("test", spec_of("clip").preprocessing), 32)
    return config, network.state_dict()


@pytest.mark.parametrize("heatmap", ["rollout", "gradcam"])
def test_a_transformers_map_points_at_a_planted_change(
    learnt: tuple[dict[str, Any], dict[str, Tensor]], heatmap: str
) -> None:
    config, tensors = learnt
    spec = WeightSpec(
        name="inpx.test", config=config | {"heatmap": heatmap}, preprocessing=spec_of("clip").preprocessing
    )
    found = INPX.from_weights(Weights(spec, tensors))
    images, labels, masks = planted(60, 32, 4, (8, 17))
    assert ((found.score(images) > 0) == (labels.numpy() > 0)).mean() > 0.9
    energy, rank = pointing(found, images[1::2], masks[1::2])
    print(config["library"], heatmap, energy, rank)
    assert energy > (1.1 if heatmap == "rollout" else 1.4)
    assert rank > (0.9 if heatmap == "rollout" else 0.55)


# --------------------------------------------------------------------------------------------------- weights, zoo


def test_weights_of_ones_own(tmp_path: Path) -> None:
    network = build(official("efficientnet_b0").config)
    tensors = tiny_clip.seeded(network)
    tensors["classifier.weight"] *= 1000  # what is left of a picture behind so many random layers is little
    network.load_state_dict(tensors, strict=False)
    network.eval()
    file = tmp_path / "mine.safetensors"
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"inpx.mine: expected tensor 'conv1.weight' of shape \(64, 3, 7, 7\)"):
        import_file("inpx.mine", file, like="inpx.resnet50")
    import_file("inpx.mine", file, like="inpx.efficientnet_b0")
    found = load("inpx.mine", device="cpu")
    image = photo(300, 200)
    image.save(tmp_path / "x.png")
    inputs = Preprocessing.of("test", official("efficientnet_b0").preprocessing)
    with torch.no_grad():
        expected = float(network(inputs.normalise(inputs.pixels(image)[None])))
    sources = [image, np.asarray(image), tmp_path / "x.png", (tmp_path / "x.png").read_bytes()]
    assert found.score(sources) == pytest.approx(expected, abs=1e-4)
    assert found.heatmap(image).shape == (200, 300)


def test_other_preprocessing_travels_with_the_file(tmp_path: Path) -> None:
    network = build(official("efficientnet_b0").config)
    inputs = dict(official("efficientnet_b0").preprocessing) | {"resize": 64, "crop": 48}
    save_file(lively(network), tmp_path / "m.safetensors", {"detector_zoo": json.dumps({"preprocessing": inputs})})
    spec = import_file("inpx.mine", tmp_path / "m.safetensors", like="inpx.efficientnet_b0")
    assert spec.preprocessing == inputs
    found = load("inpx.mine", device="cpu").detector
    assert isinstance(found, INPX)
    assert found.transform(photo(100, 90)).shape == (3, 48, 48)


@pytest.mark.parametrize("tag", TAGS)
def test_without_weights_one_line_says_what_to_do(tag: str, tmp_path: Path) -> None:
    photo().save(tmp_path / "x.png")
    done = CliRunner().invoke(main, ["score", "-d", f"inpx.{tag}", str(tmp_path / "x.png")])
    error, hint = done.stderr.splitlines()
    assert done.exit_code == 1
    assert error.startswith(f"Error: inpx.{tag}: no weights were published: The authors published data and no weights.")
    assert hint.endswith(f"zoo weights import inpx.mine FILE --like inpx.{tag}")


def test_its_plugin_says_what_it_can_do() -> None:
    (info,) = [info for info in list_detectors() if info.name == "inpx"]
    assert info.capabilities == {"localize", "train"}
    assert info.card is not None
    assert "0.753" in info.card.read_text("utf-8")
