"""MDMF on DINOv2: the paper's backbones and patch sizes, without their weights."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detector_zoo import registry
from detector_zoo.detector import Weights
from detector_zoo.errors import WeightsError
from detector_zoo.registry import WeightSpec
from detector_zoo_mdmf.distilled import build_embedder
from detector_zoo_mdmf.embedder import VitEmbedder
from detector_zoo_mdmf.mmd import SignatureHead
from detector_zoo_mdmf.model import MDMF
from detector_zoo_mdmf.tiles import Tiling

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SMALL = "vit_small_patch14_dinov2.lvd142m"
SIZES = [(56, 56), (112, 84), (70, 140)]
PATCHES = [(16, 112), (32, 224), (56, 56)]


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a module with numbers large enough that every layer shows in the tokens."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and not name.endswith("bias"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1))
    return module.eval()


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    import timm

    return seeded(timm.create_model(SMALL, pretrained=False, num_classes=0, img_size=56, dynamic_img_size=True))


def spec(patch: int = 16) -> WeightSpec:
    return WeightSpec(
        name="mdmf.dinov2_test",
        backbone="backbone.dinov2_test",
        config={
            "embedder": {"kind": "dinov2", "name": SMALL, "img_size": 56, "patch": patch},
            "head": {"hidden": [16], "dim": 8, "bank": 32},
        },
        preprocessing={"exif_orientation": "ignore", "mean": MEAN, "std": STD, "tile": 224, "grid": 1},
    )


def detector(vit: nn.Module, patch: int) -> MDMF:
    """Seeded signatures, and a bank of what they make of noise."""
    made = SignatureHead(384, [16], 8, 32).requires_grad_(False)
    seeded(made.phi)
    made.set_bank(torch.zeros(32, 8))
    weights = Weights(spec=spec(patch), tensors=dict(made.state_dict()), backbone=vit.state_dict())
    found = MDMF.from_weights(weights)
    noise = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found.network.head.set_bank(found.network.head.phi(found.network.tokens(noise)[0, :32]))
    return found


def picture(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_timm_s(vit: nn.Module, size: tuple[int, int]) -> None:
    embedder = VitEmbedder(SMALL, img_size=56)
    embedder.vit.load_state_dict(vit.state_dict())
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = vit.forward_features(x)[:, vit.num_prefix_tokens :]
        found = embedder.eval()(x)
    assert found.shape == (2, 384, size[0] // 14, size[1] // 14)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, atol=1e-4, rtol=0)


def hugging_face_state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """transformers' names and shapes of DINOv2's weights as timm's."""
    state = model.state_dict()
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "encoder.layer": "blocks",
    }
    for key, value in state.items():
        if key == "embeddings.mask_token" or key.split(".")[-2] in {"q_proj", "k_proj", "v_proj"}:
            continue
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        yield key, value
    for layer in range(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [state[f"encoder.layer.{layer}.attention.{x}_proj.{kind}"] for x in "qkv"]
            yield f"blocks.{layer}.attn.qkv.{kind}", torch.cat(parts)


def test_tokens_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=56, patch_size=14)
    theirs = seeded(transformers.Dinov2Model(config))
    embedder = VitEmbedder(SMALL, img_size=56)
    embedder.vit.load_state_dict(dict(hugging_face_state(theirs)))
    x = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        expected = theirs(x).last_hidden_state[:, 1:]
        found = embedder.eval()(x).flatten(2).transpose(1, 2)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("patch", "unit"), PATCHES)
def test_patches_of_the_paper(patch: int, unit: int) -> None:
    embedder = build_embedder(spec(patch).config["embedder"]).eval()
    assert (embedder.stride, embedder.patch, embedder.unit) == (14, patch, unit)
    with torch.inference_mode():
        x = torch.randn(1, 3, 224, 448)
        tokens, patches = embedder.features(x), embedder(x)
    assert tokens.shape == (1, 384, 16, 32)
    assert patches.shape == (1, 384, 224 // patch, 448 // patch)
    # Every pooled patch is the mean of the tokens whose pixels it shares.
    i, j = 2, 5
    rows, columns = (slice(k * patch // 14, -(-(k + 1) * patch // 14)) for k in (i, j))
    torch.testing.assert_close(patches[0, :, i, j], tokens[0, :, rows, columns].mean((1, 2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("patch", "unit"), PATCHES)
def test_tiles_hold_whole_tokens_and_whole_patches(patch: int, unit: int) -> None:
    tiling = Tiling.from_preprocessing(dict(spec(patch).preprocessing) | {"tile": 448}, patch, unit)
    for size in [(1, 1), (500, 300), (2000, 700)]:
        _, height, width = tiling.spread(picture(*size)).shape
        assert height % 14 == width % 14 == height % patch == width % patch == 0
        assert height * width >= 2 * patch * patch


@pytest.mark.parametrize("patch", [patch for patch, _ in PATCHES])
def test_any_size_is_scored(vit: nn.Module, patch: int) -> None:
    found = detector(vit, patch)
    for size in [(1, 1), (100, 70), (300, 400)]:
        assert np.isfinite(found.score([picture(*size)])).all()
        (heat,) = found.heatmap([picture(*size)])
        assert heat.shape == size[::-1]
        assert np.isfinite(heat).all()


@pytest.mark.parametrize(("patch", "golden"), [(16, 0.102505), (32, 0.114108), (56, 0.115510)])
def test_golden_scores_of_seeded_weights(vit: nn.Module, patch: int, golden: float) -> None:
    assert detector(vit, patch).score([picture(300, 260)])[0] == pytest.approx(golden, abs=1e-4)


def test_backbone_is_loaded_strictly(vit: nn.Module) -> None:
    state = {key: value for key, value in vit.state_dict().items() if key != "norm.bias"}
    with pytest.raises(WeightsError, match=r"backbone.dinov2_test: expected tensor 'norm.bias'"):
        MDMF.from_weights(Weights(spec=spec(), tensors={}, backbone=state))


@pytest.mark.parametrize(
    ("letter", "width", "depth"), [("s", 384, 12), ("b", 768, 12), ("l", 1024, 24), ("g", 1536, 40)]
)
def test_configurations_in_the_registry(letter: str, width: int, depth: int) -> None:
    found = registry.lookup(f"mdmf.dinov2_{letter}14")
    assert found.backbone == f"backbone.dinov2_vit_{letter}14"
    assert found.source is None
    assert found.why
    # Shapes are enough, and the largest has 1.1 billion weights.
    with torch.device("meta"):
        embedder = build_embedder(found.config["embedder"])
        SignatureHead(embedder.dim, **found.config["head"])
    assert (embedder.dim, len(embedder.vit.blocks), embedder.stride, embedder.patch) == (width, depth, 14, 32)
    assert Tiling.from_preprocessing(found.preprocessing, embedder.patch, embedder.unit).tile == 448
