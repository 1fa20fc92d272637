import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from detector_zoo.detector import Localizer, Weights
from detector_zoo.errors import WeightsError
from detector_zoo.registry import Calibration, WeightSpec
from detector_zoo_mdmf import mmd
from detector_zoo_mdmf.distilled import build_embedder
from detector_zoo_mdmf.embedder import ConvEmbedder
from detector_zoo_mdmf.mmd import SignatureHead, criterion, kernel, mean_kernel, mmd2_unbiased
from detector_zoo_mdmf.model import MDMF, Network
from detector_zoo_mdmf.signatures import choose_bank
from detector_zoo_mdmf.tiles import Tiling

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SPEC = WeightSpec(
    name="mdmf.test",
    config={
        "embedder": {"kind": "conv", "stages": 3, "patch": 16},
        "head": {"hidden": [8], "dim": 4, "bank": 700},
    },
    preprocessing={"exif_orientation": "ignore", "mean": MEAN, "std": STD, "tile": 96, "grid": 2, "jpeg_quality": None},
    calibration=Calibration(scale=3.0, offset=-1.0, fitted_on="nothing"),
)


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = Network(ConvEmbedder(3, 16), SignatureHead(40, [8], 4, 700))
    # Normalisation fitted to noise keeps random layers from fading the image away.
    network.train()
    for _ in range(30):
        network.embedder(torch.randn(4, 3, 96, 96))
    network.eval().requires_grad_(False)
    tokens = network.tokens(torch.randn(8, 3, 96, 96)).flatten(0, 1)
    bank = network.head.phi(tokens)[torch.arange(700) % len(tokens)]
    network.head.set_bank(bank + 0.05 * torch.randn_like(bank))
    return {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def detector() -> MDMF:
    return MDMF.from_weights(Weights(spec=SPEC, tensors=tensors()))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse, int) + noise, 0, 255).astype(np.uint8))


# --- the statistic


def test_kernel_is_gaussian():
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert kernel(a, b, 5.0).tolist() == [[pytest.approx(np.exp(-0.5)), 1.0]]


def test_unbiased_estimate_equals_brute_force():
    p, q = torch.randn(7, 3), torch.randn(5, 3) + 1

    def mean(x, y, same):
        values = [
            torch.exp(-((a - b) ** 2).sum() / 2)
            for i, a in enumerate(x)
            for j, b in enumerate(y)
            if not (same and i == j)
        ]
        return torch.stack(values).mean()

    expected = mean(p, p, True) + mean(q, q, True) - 2 * mean(p, q, False)
    assert mmd2_unbiased(p, q, 1.0).item() == pytest.approx(expected.item(), abs=1e-6)


def test_criterion_equals_its_formula():
    p, q, s = torch.randn(6, 3), torch.randn(6, 3) + 0.5, torch.tensor(1.3)
    h = torch.empty(6, 6)
    for i in range(6):
        for j in range(6):
            pairs = ((p[i], p[j], 1), (q[i], q[j], 1), (p[i], q[j], -1), (p[j], q[i], -1))
            h[i, j] = sum(sign * torch.exp(-((a - b) ** 2).sum() / (2 * s**2)) for a, b, sign in pairs)
    value = (h.sum() - h.diagonal().sum()) / 30
    variance = 4 * ((h.mean(1) ** 2).mean() - h.mean() ** 2)
    assert criterion(p, q, s, 0.01).item() == pytest.approx((value / torch.sqrt(variance + 0.01)).item(), rel=1e-4)


def test_blocks_change_nothing():
    a, b = torch.randn(2, 9, 4), torch.randn(2, 1100, 4)
    assert torch.allclose(mean_kernel(a, b, 0.8), kernel(a, b, 0.8).mean(-1), atol=1e-6)
    assert torch.allclose(mean_kernel(a, b, 0.8, block=7), mean_kernel(a, b, 0.8), atol=1e-6)


def test_head_equals_the_direct_formula_and_its_bank_term_is_right():
    head = SignatureHead(6, [5], 3, 40).requires_grad_(False)
    head.set_bank(torch.randn(40, 3))
    tokens = torch.randn(3, 11, 6)
    bank = kernel(head.bank, head.bank, head.bandwidth)
    assert head.bank_term.item() == pytest.approx(((bank.sum() - 40) / (40 * 39)).item(), abs=1e-6)
    direct = [mmd2_unbiased(head.phi(image), head.bank, head.bandwidth) for image in tokens]
    assert torch.allclose(head(tokens), torch.stack(direct), atol=1e-6)


def test_size_does_not_leak_into_the_statistic():
    head = SignatureHead(6, [], 3, 200).requires_grad_(False)
    head.set_bank(head.phi(torch.randn(200, 6)))
    few, many = head(torch.randn(400, 5, 6)).mean(), head(torch.randn(40, 50, 6)).mean()
    assert abs(few - many) < 0.01


@pytest.mark.parametrize("rule", ["random", "kmeans", "herding"])
def test_bank_stands_for_all(rule):
    torch.manual_seed(0)
    signatures = torch.randn(2000, 2)
    bank = choose_bank(signatures, 100, torch.tensor(1.0), rule)
    assert bank.shape == (100, 2)
    assert mmd2_unbiased(bank, signatures, 1.0).abs() < 0.02


# --- scores


def test_score_does_not_depend_on_batch_order_or_threads(detector):
    images = [picture(90 + 30 * i, 200 - 20 * i, i) for i in range(4)] + [picture(150, 150, i) for i in range(3)]
    together = detector.score(images)
    alone = np.concatenate([detector.score([image]) for image in images])
    assert np.ptp(together) > 1e-3
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(detector.score(images[::-1])[::-1], together, atol=1e-4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        np.testing.assert_allclose(detector.score(images), together, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


def test_score_is_calibrated_mmd(detector):
    image = picture(120, 80)
    raw = detector.raw(detector.transform(image)[None])
    np.testing.assert_allclose(detector.score([image]), 3 * raw - 1, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 33), (97, 500), (6000, 4000)])
def test_any_size(detector, size):
    image = picture(*size) if size[0] < 1000 else Image.new("RGB", size, (120, 80, 30))
    tensor = detector.transform(image)
    assert tensor.shape[0] % 3 == 0
    assert tensor.shape[0] <= 12
    assert max(tensor.shape[1:]) <= 96
    assert np.isfinite(detector.score([image])).all()


def test_tiles_are_native_pixels(detector):
    image = picture(300, 200)
    tiles = detector.tiling.spread(image).unflatten(0, (-1, 3))
    assert tiles.shape == (4, 3, 96, 96)
    back = tiles[3] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    expected = np.asarray(image.crop((204, 104, 300, 200))).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(back.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (100, 37), (200, 96), (333, 250)])
def test_cover_leaves_no_gap(size):
    tiling = Tiling(patch=16, mean=(0.0,) * 3, std=(1.0,) * 3, tile=96, grid=2)
    seen = np.zeros((1024, 1024), bool)
    for top, left, tile in tiling.cover(picture(*size)):
        assert top % 16 == left % 16 == tile.shape[1] % 16 == tile.shape[2] % 16 == 0
        seen[top : top + tile.shape[1], left : left + tile.shape[2]] = True
    assert seen[: size[1], : size[0]].all()


def test_jpeg_inside_the_transform_makes_formats_alike():
    plain = Tiling(16, (0.0,) * 3, (1.0,) * 3, 96, 1)
    coded = dataclasses.replace(plain, jpeg_quality=80)
    image = picture(96, 96)
    assert not torch.equal(plain.spread(image), coded.spread(image))
    assert torch.equal(coded.spread(image), coded.spread(image))


def test_shrinking_keeps_the_grid_of_patches():
    tiling = Tiling.from_preprocessing(
        {"exif_orientation": "ignore", "mean": MEAN, "std": STD, "tile": 96, "grid": 2, "shrink": 1.5}, patch=16
    )
    assert tiling.patch == 24
    assert tiling.spread(picture(96, 60)).shape == (3, 32, 64)
    assert [(top, left, tuple(tile.shape)) for top, left, tile in tiling.cover(picture(100, 96))] == [
        (0, 0, (3, 64, 64)),
        (0, 24, (3, 64, 64)),
    ]


# --- heatmaps


def test_heatmap_points_at_a_planted_change(detector):
    base = np.full((192, 192, 3), 127)
    base = np.clip(base + np.random.default_rng(0).integers(-8, 9, base.shape), 0, 255).astype(np.uint8)
    changed = base.copy()
    changed[96:176, 16:96] = np.random.default_rng(1).integers(0, 256, (80, 80, 3))
    # The bank of this test is the untouched picture's own patches.
    network = detector.network
    kept = network.head.bank, network.head.bank_term
    try:
        grids = network.embedder(detector.transform(Image.fromarray(base)).unflatten(0, (-1, 3)))
        own = network.head.phi(grids.flatten(2).transpose(1, 2).flatten(0, 1))
        network.head.set_bank(own[torch.arange(700) % len(own)])
        (heat,) = detector.heatmap([Image.fromarray(changed)])
    finally:
        network.head.bank, network.head.bank_term = kept
    assert heat.shape == (192, 192)
    assert heat.dtype == np.float32
    inside = np.zeros(heat.shape, bool)
    inside[96:176, 16:96] = True
    assert heat[inside].mean() > heat[~inside].mean() + 3 * heat[~inside].std() / 10
    assert inside[np.unravel_index(heat.argmax(), heat.shape)]


@pytest.mark.parametrize("size", [(1, 1), (130, 50), (257, 300)])
def test_heatmap_has_the_image_s_size(detector, size):
    heat = detector.heatmap([picture(*size), picture(*size, 1)])
    assert heat.shape == (2, size[1], size[0])
    assert np.isfinite(heat).all()


def test_capabilities(detector):
    assert isinstance(detector, Localizer)


# --- loading


def test_loading_is_strict():
    good = tensors()
    cases = {
        "head.bank": ({k: v for k, v in good.items() if k != "head.bank"}, r"'head.bank' of shape \(700, 4\).*missing"),
        "shape": (good | {"head.phi.0.weight": torch.zeros(8, 3)}, r"'head.phi.0.weight'.*\(8, 40\), got \(8, 3\)"),
        "extra": (good | {"head.more": torch.zeros(2)}, r"no tensor 'head.more', got one of shape \(2,\)"),
    }
    for given, message in cases.values():
        with pytest.raises(WeightsError, match=message):
            MDMF.from_weights(Weights(spec=SPEC, tensors=given))


def test_unknown_embedder():
    with pytest.raises(WeightsError, match="'vgg' is unknown"):
        build_embedder({"kind": "vgg"})


def test_half_precision_tensors_load():
    half = {key: value.half() for key, value in tensors().items()}
    detector = MDMF.from_weights(Weights(spec=SPEC, tensors=half))
    assert detector.network.head.bank.dtype == torch.float32


# --- the shipped weights


GOLDEN = {"ramp": -1.505, "noise": -1.95, "shapes": -0.288}


def golden_images() -> dict[str, Image.Image]:
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    return {
        "ramp": Image.fromarray(np.stack([np.tile(ramp, (200, 1))] * 3, axis=-1)),
        "noise": Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)),
        "shapes": picture(500, 420, 7),
    }


@pytest.fixture(scope="module")
def lite():
    from detector_zoo.loading import load

    return load("mdmf.lite", device="cpu")


@pytest.mark.parametrize("name", sorted(golden_images()))
def test_golden_scores(lite, name):
    assert lite.score([golden_images()[name]])[0] == pytest.approx(GOLDEN[name], abs=0.05)


def test_shipped_bank_term_belongs_to_its_bank(lite):
    head = lite.detector.network.head
    term = mmd.self_mean(head.bank, head.bandwidth)
    assert head.bank_term.item() == pytest.approx(term.item(), abs=1e-4)


def test_shipped_file_is_small(lite):
    from importlib.resources import files

    content = (files("detector_zoo_mdmf") / "weights" / "lite.safetensors").read_bytes()
    assert len(content) < 6_000_000
    assert hashlib.sha256(content).hexdigest() == lite.spec.sha256
