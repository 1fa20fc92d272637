"""The building blocks: tiling, folding, strict loading, position-wise scoring; and all detectors on ResNet-50."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import resnets
from detector_zoo import load
from detector_zoo.detector import Explainer, Localizer, Weights
from detector_zoo.errors import WeightsError
from detector_zoo.networks.folding import fold
from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo.networks.resnet import ResNet50
from detector_zoo.networks.state import load_strictly
from detector_zoo.networks.tiling import Geometry, tiles
from detector_zoo.registry import WeightSpec
from detector_zoo.scoring import Options, run

from conftest import photo

PREPROCESSING = {"mean": list(resnets.MEAN), "std": list(resnets.STD), "exif_orientation": "ignore"}
NAMES = sorted(resnets.STRIDES)

# --------------------------------------------------------------------------------------------------------- tiling


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    stride=st.sampled_from([1, 2, 8, 32]),
    radius=st.integers(0, 60),
    pixels=st.integers(1, 100_000),
)
def test_the_plan_of_tiles(height: int, width: int, stride: int, radius: int, pixels: int) -> None:
    geometry = Geometry(stride, radius)
    owners = np.zeros((-(-height // stride), -(-width // stride)), int)
    for tile in tiles(height, width, geometry, pixels):
        owners[tile.rows.first : tile.rows.last, tile.columns.first : tile.columns.last] += 1
        for span, side in ((tile.rows, height), (tile.columns, width)):
            assert 0 <= span.start < span.stop <= side
            assert span.first < span.last
            assert span.start % stride == 0, "or its positions would not be the image's"
            assert span.start <= max(0, span.first * stride - radius), "halo, or the image's own border"
            assert span.stop >= min(side, (span.last - 1) * stride + radius + 1)
        if pixels >= (4 * radius + 6 * stride) ** 2:
            area = (tile.rows.stop - tile.rows.start) * (tile.columns.stop - tile.columns.start)
            assert area <= pixels
    assert (owners == 1).all(), "every position in exactly one tile"


def test_an_image_that_fits_is_one_tile() -> None:
    (tile,) = tiles(30, 50, Geometry(8, 56), 1500)
    assert (tile.rows.start, tile.rows.stop, tile.columns.start, tile.columns.stop) == (0, 30, 0, 50)
    assert len(list(tiles(30, 50, Geometry(8, 3), 1499))) > 1


class Small(nn.Module):
    """Strided, padded and pooled like a ResNet, in miniature; its receptive field is 31 pixels."""

    geometry = Geometry(4, 15)
    floats = 16.0

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.conv2 = nn.Conv2d(8, 8, 3, 2, 1)
        self.conv3 = nn.Conv2d(8, 6, 3, 1, 1)
        self.conv4 = nn.Conv2d(6, 6, 3, 1, 1)
        self.fc = nn.Linear(6, 1)
        for value in self.state_dict().values():
            if value.is_floating_point():
                scale = max(1, value[0].numel()) ** -0.5
                value.copy_(scale * (0.2 + torch.randn(value.shape, generator=generator)))
        self.bn1.running_var.abs_().add_(0.1)

    def features(self, x: Tensor) -> Tensor:
        x = self.conv2(self.pool(self.bn1(self.conv1(x)).relu())).relu()
        return self.conv4(self.conv3(x).relu()).relu()


class SmallDetector(PositionwiseDetector):
    @classmethod
    def build(cls, config: Mapping[str, object]) -> nn.Module:
        if config:
            raise WeightsError(f"config: unknown key {min(config)!r}")
        return Small()


SMALL_SPEC = WeightSpec(name="small.test", preprocessing=PREPROCESSING)


def small(spec: WeightSpec = SMALL_SPEC) -> SmallDetector:
    return SmallDetector.from_weights(Weights(spec, Small().state_dict()))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(resnets.PATTERNS),
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    pixels=st.integers(2_000, 12_000),
)
def test_tiles_change_nothing(kind: str, width: int, height: int, pixels: int) -> None:
    image = resnets.pattern(kind, width, height)
    whole, tiled = small(), small()
    tiled.memory = round(pixels * 4 * Small.floats / 0.6)
    assert tiled.score([image, image]) == pytest.approx(whole.score([image, image]), abs=1e-4)
    assert tiled.heatmap([image]) == pytest.approx(whole.heatmap([image]), abs=1e-4)
    assert tiled.evidence(image) == pytest.approx(dict(whole.evidence(image)), abs=1e-4)


def test_a_halo_too_narrow_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image = resnets.pattern("random", 120, 90)
    whole, tiled = small(), small()
    tiled.memory = 200_000
    monkeypatch.setattr(Small, "geometry", Geometry(4, 3))
    assert abs(tiled.heatmap([image]) - whole.heatmap([image])).max() > 0.01


def test_the_memory_decides_the_size_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small()
    seen: list[tuple[int, ...]] = []
    features = detector.network.features
    monkeypatch.setattr(detector.network, "features", lambda x: seen.append(tuple(x.shape)) or features(x))
    batch = torch.zeros(5, 3, 100, 100, dtype=torch.uint8)
    detector.memory = 10**9
    detector.raw(batch)
    assert seen == [(5, 3, 100, 100)], "as many images at a time as there is room for"
    seen.clear()
    detector.memory = round(2.5 * 10_000 * 4 * Small.floats / 0.6)
    detector.raw(batch)
    assert seen == [(2, 3, 100, 100), (2, 3, 100, 100), (1, 3, 100, 100)]
    seen.clear()
    detector.memory = round(6_000 * 4 * Small.floats / 0.6)
    detector.raw(batch)
    assert len(seen) >= 10
    assert all(shape[0] == 1 and shape[2] * shape[3] <= 6_000 for shape in seen)


def field(network: nn.Module, size: tuple[int, int], place: tuple[int, int]) -> tuple[list[int], list[int]]:
    """First and last row and column that the features at ``place`` depend on, by gradients."""
    x = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    network.features(x)[0, :, place[0], place[1]].sum().backward()
    assert x.grad is not None
    rows, columns = (x.grad[0].sum(0) != 0).nonzero().T
    return [int(rows.min()), int(rows.max())], [int(columns.min()), int(columns.max())]


def all_positive(network: nn.Module) -> nn.Module:
    """Weights that let every gradient through, and mean instead of max pooling, whose gradient has one target."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)  # timm starts a block's last one at 0
            nn.init.zeros_(module.bias)
    for name, module in list(network.named_children()):
        if isinstance(module, nn.MaxPool2d):
            setattr(network, name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
    return network.double().eval()


@pytest.mark.parametrize(("strides", "stride", "width"), [((1, 1), 8, 113), ((2, 2), 32, 427), ((2, 1), 16, 219)])
def test_the_receptive_field_of_resnet50(strides: tuple[int, int], stride: int, width: int) -> None:
    network = ResNet50(*strides)
    assert network.geometry == Geometry(stride, width // 2)
    all_positive(network)
    # A strip one pixel high, then one pixel wide: the field is as long there, and costs little.
    place = -(-width // 2 // stride) + 1
    length = 2 * place * stride + 5
    seen = [place * stride - width // 2, place * stride + width // 2]
    assert field(network, (1, length), (0, place)) == ([0, 0], seen)
    assert field(network, (length, 1), (place, 0)) == (seen, [0, 0])
    assert seen[1] - seen[0] + 1 == width
    assert network.features(torch.zeros(1, 3, length, 1).double()).shape[2] == network.geometry.positions(length)


def test_the_receptive_field_of_the_small_network() -> None:
    assert field(all_positive(Small()), (100, 90), (10, 11)) == ([25, 55], [29, 59])


# -------------------------------------------------------------------------------------------------------- folding


def scrambled(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight):
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenetv2_035"])
def test_folding_changes_no_value_and_leaves_no_normalisation(name: str) -> None:
    torch.manual_seed(0)
    network = scrambled(timm.create_model(name, num_classes=3))
    x = torch.randn(2, 3, 64, 64)
    expected = network(x)
    assert fold(network) is network
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert torch.allclose(network(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_folding_leaves_what_does_not_follow_a_convolution() -> None:
    strangers = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)
    )
    strangers[5] = nn.BatchNorm2d(5, track_running_stats=False)
    strangers.eval().requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    expected = strangers(x)
    assert torch.equal(fold(strangers)(x), expected)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in strangers) == 3


# -------------------------------------------------------------------------------------------------- strict loading


def test_loading_fills_every_tensor_and_converts_precision() -> None:
    source, target = Small(), Small()
    half = {key: value.half() if value.is_floating_point() else value for key, value in source.state_dict().items()}
    nn.init.zeros_(target.conv2.weight)
    load_strictly(target, half | {"extra": torch.ones(1)}, "x.y", ignore=["extra"])
    assert target.conv2.weight.dtype == torch.float32
    assert torch.equal(target.conv2.weight, source.conv2.weight.half().float())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv2.weight": None}, "expected tensor 'conv2.weight' of shape (8, 8, 3, 3), it is missing"),
        ({"conv2.bias": torch.ones(9)}, "expected 'conv2.bias' of shape (8,), got (9,)"),
        ({"more": torch.ones(2)}, "expected no tensor 'more', got one of shape (2,)"),
        ({"fc.weight": torch.ones(1, 6, dtype=torch.int8)}, "'fc.weight' of floating-point numbers, got torch.int8"),
    ],
)
def test_anything_else_is_refused_before_anything_is_loaded(change: dict[str, Tensor | None], words: str) -> None:
    tensors = {key: value for key, value in (Small().state_dict() | change).items() if value is not None}
    target = Small()
    nn.init.zeros_(target.conv1.weight)
    with pytest.raises(WeightsError, match=r"^x\.y: ") as caught:
        load_strictly(target, tensors, "x.y")
    assert words in str(caught.value)
    assert not target.conv1.weight.any()


# -------------------------------------------------------------------------------------------- position-wise scoring


def test_a_configuration_that_describes_no_network_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match=r"^small\.test: config: unknown key 'deep'$"):
        small(WeightSpec(name="small.test", preprocessing=PREPROCESSING, config={"deep": 1}))


def test_the_logit_is_the_mean_of_the_map_and_the_sum_of_the_evidence() -> None:
    detector, image = small(), photo(41, 30)
    (score,) = detector.score([image])
    centres = detector.heatmap([image])[0, ::4, ::4]
    assert score == pytest.approx(centres.mean(), abs=1e-5)
    evidence = detector.evidence(image)
    assert score == pytest.approx(sum(evidence.values()), abs=1e-5)
    assert evidence["real"] < -0.01
    assert evidence["fake"] > 0.01


def test_between_positions_the_map_is_linear() -> None:
    heat = small().heatmap([photo(41, 30)])[0]
    assert heat[8, 14] == pytest.approx((heat[8, 12] + heat[8, 16]) / 2, abs=1e-5)
    assert (heat[28:, 40] == heat[28, 40]).all(), "beyond the last position it repeats"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_lost_in_convolutions_only(precision: str) -> None:
    detector = small()
    images = [photo(64, 64, seed) for seed in range(3)]
    exact = detector.score(images)
    detector.precision = precision  # type: ignore[assignment]
    found = detector.score(images)
    assert found == pytest.approx(exact, rel=1e-6 if precision == "fp32" else 0.05)
    with detector.autocast():
        assert detector.logits(torch.zeros(1, 3, 9, 9, dtype=torch.uint8)).dtype == torch.float64


# ------------------------------------------------------------------------------------------- detectors on ResNet-50


@pytest.fixture(params=NAMES)
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of random weights, imported into the test's own home."""
    name = f"{request.param}.mine"
    file = resnets.authors_file(tmp_path / "w.pth", resnets.state(nonnegative=request.param == "stay_positive"))
    done = resnets.zoo("weights", "import", name, file)
    assert done.exit_code == 0, done.output
    return name


def test_a_score_depends_on_the_image_alone(imported: str, tmp_path: Path) -> None:
    detector = load(imported, device="cpu")
    assert isinstance(detector.detector, Localizer)
    assert isinstance(detector.detector, Explainer)
    files = []
    for i, size in enumerate([(64, 48), (48, 64), (64, 48), (40, 40), (64, 48)]):
        files.append(tmp_path / f"{i}.png")
        photo(*size, i).save(files[-1])

    def scores(paths: list[Path], **options: int) -> dict[str, float]:
        rows = [row for rows in run(map(str, paths), [detector], Options(**options)) for row in rows]
        return {row.path: row.log_odds for row in rows if row.log_odds is not None}

    expected = scores(files, batch_size=1, workers=0)
    assert len({round(value, 3) for value in expected.values()}) == len(files), "or the test shows nothing"
    shuffled = random.Random(1).sample(files, len(files))
    assert scores(files, batch_size=16, workers=2) == pytest.approx(expected, abs=1e-4)
    assert scores(shuffled, batch_size=2, workers=1) == pytest.approx(expected, abs=1e-4)
    torch.manual_seed(3)
    with Image.open(files[1]) as picture:
        sources = [files[1], str(files[1]), files[1].read_bytes(), np.asarray(picture), picture]
        assert detector.score(sources) == pytest.approx(expected[str(files[1])], abs=1e-4)
    for size in ((1, 1), (1, 90), (17, 16), (33, 130)):
        heat = detector.heatmap(photo(*size))
        assert heat.shape == (size[1], size[0])
        assert np.isfinite(heat).all()


def planted(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    """The image with a square of stripes."""
    values = np.array(image)
    values[top : top + side, left : left + side] = 255 * (np.arange(side) // 2 % 2)[:, None]
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("name", "size", "side"), [("cnnspot", 320, 128), ("corvi", 128, 48), ("stay_positive", 128, 48)]
)
def test_the_map_points_to_a_planted_change(name: str, size: int, side: int) -> None:
    detector = resnets.build(name, resnets.state(nonnegative=True))
    # The last layer in closed form: the direction in which a planted square moves random features.
    plain = [photo(size, size, seed) for seed in range(2)]
    with torch.inference_mode():
        means = [
            detector.pooled(torch.stack([detector.transform(image) for image in images])).mean(0)
            for images in (plain, [planted(image, size // 3, size // 3, side) for image in plain])
        ]
        direction = (means[1] - means[0]).clamp(min=0 if name == "stay_positive" else -float("inf"))
        detector.network.fc.weight.copy_(direction[None] / direction.norm())
    image = photo(size, size, 7)
    left, top = size - side - 8, 8
    changed = planted(image, left, top, side)
    assert detector.score([changed]) > detector.score([image])
    heat = detector.heatmap([changed])[0]
    inside = np.zeros((size, size), bool)
    inside[top : top + side, left : left + side] = True
    assert heat[inside].mean() > heat[~inside].mean() + 2 * heat[~inside].std()
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert inside[y, x]
