"""UFD-CLIP against transformers' CLIP and torchvision's transforms, from the Hub to the score."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

import tiny_clip
from detector_zoo import load, registry
from detector_zoo.cli import main
from detector_zoo.detector import Weights
from detector_zoo.errors import WeightsError
from detector_zoo.networks.clip import build_tower, embedding_size, load_tower
from detector_zoo.plugins import list_detectors
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.registry import WeightSpec
from detector_zoo.weights import fetch, read
from detector_zoo.weights_import import import_file
from detector_zoo_ufd_clip.model import UFD
from detector_zoo_ufd_clip.small import SmallUFD

from conftest import photo
from hub_server import HubServer

PLUGIN = Path(__file__).parents[1] / "plugins" / "detector_zoo_ufd_clip"
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TINY_INPUT = {"mean": MEAN, "std": STD, "crop": tiny_clip.SIDE, "exif_orientation": "ignore"}
SIZES = [(224, 224), (225, 223), (500, 301), (223, 300), (100, 57), (1, 1), (640, 3)]


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny_clip.register(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_clip.theirs(1)


def head(width: int = tiny_clip.WIDTH, seed: int = 2) -> dict[str, Tensor]:
    """As long as the authors' weight is, so that logits are of the same magnitude."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, width, generator=generator)
    return {"weight": 6.2 * weight / weight.norm(), "bias": torch.randn(1, generator=generator)}


def detector(backbone: Mapping[str, Tensor], name: str = tiny_clip.NAME) -> UFD:
    spec = WeightSpec(name="ufd_clip.test", config={"model": name}, preprocessing=TINY_INPUT)
    return UFD.from_weights(Weights(spec, head(), backbone))


def reference(model: Any, image: Image.Image, crop: int, squash: int | None = None) -> float:
    """The logit by torchvision and transformers; the head without a network."""
    steps = [v2.Resize((squash, squash))] if squash else []
    steps += [v2.CenterCrop(crop), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    pixels = v2.Compose(steps)(image)[None]
    with torch.inference_mode():
        embedding = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        linear = head(embedding.shape[1])
        return float(embedding @ linear["weight"].T + linear["bias"])


# ------------------------------------------------------------------------------------------------------ the tower


def test_the_tower_equals_transformers(model: Any) -> None:
    tower = load_tower(tiny_clip.NAME, tiny_clip.published(model), "test")
    x = torch.randn(3, 3, tiny_clip.SIDE, tiny_clip.SIDE)
    expected = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
    assert expected.std() > 0.1
    torch.testing.assert_close(tower(x), expected, atol=1e-5, rtol=1e-5)


def test_open_clips_own_layouts_are_read_alike(model: Any) -> None:
    tower = load_tower(tiny_clip.NAME, tiny_clip.published(model), "test")
    bare = tower.state_dict()
    whole = {f"visual.{key}": value for key, value in bare.items()} | {"text_projection": torch.zeros(3)}
    x = torch.randn(2, 3, tiny_clip.SIDE, tiny_clip.SIDE)
    for tensors in (bare, whole):
        assert torch.equal(load_tower(tiny_clip.NAME, tensors, "test")(x), tower(x))


def test_there_is_no_text_tower() -> None:
    import open_clip

    keys = set(build_tower(tiny_clip.NAME).state_dict())
    whole = open_clip.create_model(tiny_clip.NAME, pretrained=None)
    assert keys == set(whole.visual.state_dict())
    assert not [key for key in keys if "text" in key or "token" in key]


@pytest.mark.parametrize(
    ("lost", "added", "message"),
    [
        (
            "vision_model.encoder.layers.1.self_attn.k_proj.bias",
            None,
            "backbone.x: expected tensor 'vision_model.encoder.layers.1.self_attn.k_proj.bias', it is missing",
        ),
        ("visual_projection.weight", None, "expected tensor 'visual_projection.weight', it is missing"),
        (None, "vision_model.encoder.layers.3.mlp.fc1.bias", "expected no tensor 'vision_model.encoder.layers.3.mlp"),
        ("vision_model.post_layernorm.bias", "vision_model.post_layernorm.bias", r"'ln_post.bias' of shape \(32,\)"),
    ],
)
def test_a_file_of_another_network_is_refused(model: Any, lost: str | None, added: str | None, message: str) -> None:
    tensors = tiny_clip.published(model)
    if lost:
        del tensors[lost]
    if added:
        tensors[added] = torch.zeros(5)
    with pytest.raises(WeightsError, match=message):
        load_tower(tiny_clip.NAME, tensors, "backbone.x")


@pytest.mark.parametrize(
    ("name", "message"), [("nonsense", "knows no model 'nonsense'"), ("RN50", "RN50 has no plain vision transformer")]
)
def test_a_model_that_is_no_vision_transformer(name: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        build_tower(name)


def test_the_architecture_of_the_registry() -> None:
    spec = registry.registry().specs["ufd_clip.official"]
    tower = build_tower(spec.config["model"])
    assert embedding_size(spec.config["model"]) == 768
    assert sum(parameter.numel() for parameter in tower.parameters()) == 303_966_208
    gates = {type(block.mlp.gelu).__name__ for block in tower.transformer.resblocks}  # type: ignore[attr-defined]
    assert gates == {"QuickGELU"}


# ----------------------------------------------------------------------------------------------------- the mistakes


def test_what_others_got_wrong_would_show(model: Any) -> None:
    tensors, image = tiny_clip.published(model), photo(tiny_clip.SIDE, tiny_clip.SIDE)
    right = detector(tensors)
    (score,) = right.score([image])
    assert score == pytest.approx(reference(model, image, tiny_clip.SIDE), abs=1e-4)
    with torch.inference_mode():
        x = right.inputs.normalise(right.transform(image)[None])
        pooled = model.vision_model(pixel_values=x).pooler_output
        embedding = right.backbone(x)
        wrong = {
            "the pooler's output": right.network(pooled),
            "a length of 1": right.network(functional.normalize(embedding)),
            "the mean of the patches": right.network(
                model.visual_projection(model.vision_model(pixel_values=x).last_hidden_state[:, 1:].mean(1))
            ),
        }
    for mistake, value in wrong.items():
        assert abs(float(value) - score) > 0.01, mistake
    assert abs(detector(tensors, tiny_clip.GELU).score([image])[0] - score) > 0.001, "GELU"


# ---------------------------------------------------------------------------------------------------- preprocessing


def official(variant: str) -> Preprocessing:
    spec = registry.registry().specs["ufd_clip.official"]
    return Preprocessing.of(spec.name, (spec.with_variant(variant) if variant else spec).preprocessing)


@pytest.mark.parametrize("variant", ["", "squash"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.tuples(st.integers(1, 600), st.integers(1, 600)))
@example(size=SIZES[0])
@example(size=SIZES[1])
@example(size=SIZES[2])
@example(size=SIZES[3])
@example(size=SIZES[4])
@example(size=SIZES[5])
@example(size=SIZES[6])
def test_the_input_equals_torchvisions(variant: str, size: tuple[int, int]) -> None:
    ours, image = official(variant), photo(*size)
    steps = [v2.Resize((256, 256))] if variant else []
    pixels = v2.Compose([*steps, v2.CenterCrop(224), v2.PILToTensor()])(image)
    assert torch.equal(ours.pixels(image), pixels)
    expected = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])(pixels)
    torch.testing.assert_close(ours.normalise(ours.pixels(image)[None])[0], expected, atol=1e-6, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------- scores


def test_golden_scores() -> None:
    images = [photo(*size, seed=i) for i, size in enumerate([(32, 32), (50, 41), (20, 64)])]
    found = detector(tiny_clip.seeded(build_tower(tiny_clip.NAME))).score(images)
    assert found == pytest.approx([9.6774, 11.7846, 15.8568], abs=1e-3)


def test_a_score_does_not_depend_on_its_batch(model: Any) -> None:
    found = detector(tiny_clip.published(model))
    images = [photo(40 + i, 60 - i, i) for i in range(9)]
    together = found.score(images)
    assert np.ptp(together) > 0.1
    alone = [found.score([image])[0] for image in images]
    assert together == pytest.approx(alone, abs=1e-4)
    assert found.score(images[::-1])[::-1] == pytest.approx(together, abs=1e-4)


# --------------------------------------------------------------------------------------------------------- the path


def entries(files: Mapping[str, Any], name: str, inputs: Mapping[str, Any]) -> str:
    variants = {"squash": {"resize": [inputs["crop"] + 8] * 2}}
    head_spec = {"backbone": "backbone.tiny", "config": {"model": name}, "preprocessing": inputs, "variants": variants}
    both = {"ufd_clip.tiny": head_spec | files["head"], "backbone.tiny": files["backbone"]}
    return json.dumps({"schema_version": 1, "weights": {key: value | {"why": "a test"} for key, value in both.items()}})


def head_file(width: int) -> bytes:
    """As the authors saved theirs: a plain state dict in torch's own format."""
    buffer = io.BytesIO()
    torch.save(head(width), buffer)
    return buffer.getvalue()


PROGRAM = """
import json, sys
from pathlib import Path
import open_clip
open_clip.add_model_config(Path(sys.argv[1]))
from detector_zoo import load
names = ("ufd_clip.tiny", "ufd_clip.tiny@squash")
print(json.dumps({name: load(name, device="cpu").score(sys.argv[2:]).tolist() for name in names}))
"""


def test_head_and_backbone_over_the_hub(model: Any, tmp_path: Path) -> None:
    tiny_clip.register(tmp_path / "configs")
    backbone, linear = save(tiny_clip.published(model)), head_file(tiny_clip.WIDTH)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        photo(30 + 5 * i, 50, i).save(path)
    with HubServer() as server:
        commits = {
            "head": server.commit("org/ufd", {"univfd/fc_weights.pth": linear}),
            "backbone": server.commit("org/clip", {"model.safetensors": backbone}),
        }
        server.commit("org/clip", {"model.safetensors": b"another"})
        files = {
            "head": {"source": "hub:org/ufd/univfd/fc_weights.pth", "format": "pth", "bytes": len(linear)},
            "backbone": {"source": "hub:org/clip/model.safetensors", "bytes": len(backbone)},
        }
        for key, data in (("head", linear), ("backbone", backbone)):
            files[key] |= {"revision": commits[key], "sha256": hashlib.sha256(data).hexdigest()}
        home = tmp_path / "home"
        home.mkdir()
        (home / "registry.yaml").write_text(entries(files, tiny_clip.NAME, TINY_INPUT))
        environment = os.environ | {
            "DETECTOR_ZOO_HOME": str(home),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": server.url,
        }
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "configs"), *map(str, paths)]
        for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
            done = subprocess.run(command, env=environment | offline, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            for name, squash in (("ufd_clip.tiny", None), ("ufd_clip.tiny@squash", tiny_clip.SIDE + 8)):
                expected = [reference(model, Image.open(path), tiny_clip.SIDE, squash) for path in paths]
                assert found[name] == pytest.approx(expected, abs=1e-4)
        fetched = [request.path for request in server.bodies() if "/resolve/" in request.path]
        assert fetched == [
            f"/org/ufd/resolve/{commits['head']}/univfd/fc_weights.pth",
            f"/org/clip/resolve/{commits['backbone']}/model.safetensors",
        ], "each once, of the commit and not of the branch"


def test_transformers_and_open_clips_files_score_alike(model: Any, own_home: Path, tmp_path: Path) -> None:
    """As ViT-B/16's two files: transformers' state dict in torch's format on the Hub, and open_clip's from the user."""
    configs = tmp_path / "configs"
    tiny_clip.register(configs)
    buffer = io.BytesIO()
    torch.save(tiny_clip.published(model), buffer)
    tower = load_tower(tiny_clip.NAME, tiny_clip.published(model), "test")
    save_file({key: value.contiguous() for key, value in tower.state_dict().items()}, tmp_path / "visual.safetensors")
    save_file(head(), tmp_path / "head.safetensors")
    photo(50, 40).save(tmp_path / "x.png")
    inputs = {"config": {"model": tiny_clip.NAME}, "preprocessing": TINY_INPUT, "source": "file:", "why": "a test"}
    with HubServer() as server:
        commit = server.commit("openai/clip", {"pytorch_model.bin": buffer.getvalue()})
        specs = {
            "backbone.hub": {
                "source": "hub:openai/clip/pytorch_model.bin",
                "revision": commit,
                "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
                "format": "pth",
                "why": "a test",
            },
            "backbone.brought": {"source": "file:", "why": "a test"},
            "ufd_clip.tiny": inputs | {"backbone": "backbone.hub"},
            "ufd_clip.mine": inputs | {"backbone": "backbone.brought"},
        }
        (own_home / "registry.yaml").write_text(json.dumps({"schema_version": 1, "weights": specs}))
        program = PROGRAM.replace("ufd_clip.tiny@squash", "ufd_clip.mine").replace(
            "names =",
            "from detector_zoo.weights_import import import_file\n"
            "for name, file in zip(sys.argv[3::2], sys.argv[4::2]): import_file(name, Path(file))\n"
            "del sys.argv[3:]\nnames =",
        )
        brought = ["backbone.brought", tmp_path / "visual.safetensors"]
        for tag in ("tiny", "mine"):
            brought += [f"ufd_clip.{tag}", tmp_path / "head.safetensors"]
        done = subprocess.run(
            [sys.executable, "-c", program, configs, tmp_path / "x.png", *brought],
            env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ufd_clip.tiny"] == pytest.approx(found["ufd_clip.mine"], abs=1e-4)
    assert found["ufd_clip.tiny"] == pytest.approx(
        [reference(model, Image.open(tmp_path / "x.png"), tiny_clip.SIDE)], abs=1e-4
    )


def imported(
    own_home: Path, folder: Path, backbone: Mapping[str, Tensor], name: str, inputs: Mapping[str, Any]
) -> None:
    """Bring both files by `import_file`."""
    brought = {"source": "file:"}
    (own_home / "registry.yaml").write_text(entries({"head": brought, "backbone": brought}, name, inputs))
    registry.registry.cache_clear()
    save_file(dict(backbone), folder / "model.safetensors")
    import_file("backbone.tiny", folder / "model.safetensors")
    (folder / "fc_weights.pth").write_bytes(head_file(embedding_size(name)))
    import_file("ufd_clip.tiny", folder / "fc_weights.pth")


def test_files_that_the_user_brings(model: Any, own_home: Path, tmp_path: Path) -> None:
    imported(own_home, tmp_path, tiny_clip.published(model), tiny_clip.NAME, TINY_INPUT)
    images = [photo(45, 30, seed=7), photo(20, 70, seed=8)]
    for name, squash in (("ufd_clip.tiny", None), ("ufd_clip.tiny@squash", tiny_clip.SIDE + 8)):
        expected = [reference(model, image, tiny_clip.SIDE, squash) for image in images]
        found = load(name, device="cpu")
        assert found.score(images) == pytest.approx(expected, abs=1e-4)
        assert found.score([np.asarray(image) for image in images]) == pytest.approx(expected, abs=1e-4)
    # A head of one's own on the same backbone.
    save_file({key: 2 * value for key, value in head().items()}, tmp_path / "mine.safetensors")
    import_file("ufd_clip.mine", tmp_path / "mine.safetensors", like="ufd_clip.tiny")
    doubled = [2 * reference(model, image, tiny_clip.SIDE) for image in images]
    assert load("ufd_clip.mine", device="cpu").score(images) == pytest.approx(doubled, abs=2e-4)
    save_file(head() | {"fc.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsError, match=r"ufd_clip.other: expected no tensor 'fc.weight'"):
        import_file("ufd_clip.other", tmp_path / "wrong.safetensors", like="ufd_clip.tiny")


@pytest.mark.slow
def test_the_real_size_equals_transformers(own_home: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    model = tiny_clip.theirs(3, **sizes, image_size=224, patch_size=14, projection_dim=768)
    inputs = TINY_INPUT | {"crop": 224}
    imported(own_home, tmp_path, tiny_clip.published(model), "ViT-L-14-quickgelu", inputs)
    images = [photo(300, 224), photo(150, 400, 1)]
    expected = [reference(model, image, 224) for image in images]
    del model
    assert np.ptp(expected) > 0.01
    assert load("ufd_clip.tiny", device="cpu").score(images) == pytest.approx(expected, abs=1e-4)


# ------------------------------------------------------------------------------------------------- the command line


def test_without_weights_and_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    photo().save(tmp_path / "x.png")
    done = CliRunner().invoke(main, ["score", "-d", "ufd_clip.official", str(tmp_path / "x.png")])
    error, hint = done.stderr.splitlines()
    assert done.exit_code == 1
    assert error.startswith("Error: ufd_clip.official: https://raw.githubusercontent.com/WisconsinAIVision/")
    assert "HF_HUB_OFFLINE" in hint


def test_the_embedded_head_is_one_for_its_backbone() -> None:
    spec = registry.registry().specs["ufd_clip.b16"]
    linear = read(fetch(spec))
    assert {key: tuple(value.shape) for key, value in linear.items()} == {"weight": (1, 512), "bias": (1,)}
    assert embedding_size(spec.config["model"]) == 512
    assert spec.backbone == "backbone.clip_vit_b16_openai"
    backbones = [registry.registry().specs[f"backbone.clip_vit_b16_{name}"] for name in ("openai", "dequantised")]
    towers = sum(parameter.numel() for parameter in build_tower(spec.config["model"]).parameters())
    # The one is float16 and the image tower alone, the other float32 and all of CLIP.
    assert 2 * towers < (backbones[1].bytes or 0) < 2 * towers + 50_000
    assert 4 * towers < (backbones[0].bytes or 0)
    recipe = yaml.safe_load((PLUGIN / "recipes" / "b16.yaml").read_text())
    assert (recipe["network"], recipe["preprocessing"]) == (spec.config, spec.preprocessing)


def test_the_default_needs_neither_network_nor_clip(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = load("ufd_clip", device="cpu")
    assert found.name == "ufd_clip.lite"
    assert isinstance(found.detector, SmallUFD)
    image = photo(300, 260)
    (score,) = found.score([image])
    heat = found.heatmap(image)
    # The logit is the mean of the map's positions, which the calibration then scales.
    assert heat.shape == (260, 300)
    assert heat.min() < found.detector.raw(found.detector.transform(image)[None])[0] < heat.max()
    assert np.isfinite(score)


def test_the_backbones_size_is_that_of_its_network() -> None:
    """A safetensors file's size follows from its tensors' names and shapes, its header included."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 14}, projection_dim=768))
        tensors = tiny_clip.published(model)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, value in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + value.nbytes
        kind = {torch.float32: "F32", torch.int64: "I64"}[value.dtype]
        header[key] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    assert 8 + -(-length // 8) * 8 + end == registry.registry().specs["backbone.clip_vit_l14_openai"].bytes


def test_the_registry_says_where_the_pins_are_from() -> None:
    specs = registry.registry().specs
    backbones = ("backbone.clip_vit_l14_openai", "backbone.clip_vit_b16_openai")
    for name in ("ufd_clip.official", *backbones):
        spec = specs[name]
        assert spec.sha256
        assert spec.bytes
        assert not spec.verified
        assert "public repositories" in spec.why
        assert spec.how_to_get
    assert all(specs[name].pinned for name in backbones)
    (info,) = [info for info in list_detectors() if info.name == "ufd_clip"]
    assert info.card is not None
    assert info.card.is_file()
