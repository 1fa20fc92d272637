"""The embedder of mdmf.lite: its tokens, the map that it is taught, the teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from detector_zoo.errors import WeightsError
from detector_zoo_mdmf.distil import fit_map
from detector_zoo_mdmf.distilled import DistilledEmbedder
from detector_zoo_mdmf.laundering import launder
from detector_zoo_mdmf.teacher import load_teacher
from detector_zoo_mdmf.views import View


@pytest.fixture
def embedder() -> DistilledEmbedder:
    torch.manual_seed(0)
    return DistilledEmbedder(stages=4, outputs=6).eval().requires_grad_(False)


def test_cells_are_means_and_deviations_of_the_stages(embedder: DistilledEmbedder) -> None:
    x = torch.randn(2, 3, 64, 96)
    outputs = embedder.trunk.outputs(x)
    cells = embedder.cells(x)
    assert embedder.stride == embedder.unit == 16
    assert cells.shape == (2, embedder.inputs, 4, 6)
    assert embedder.inputs == 2 * 40 + 80
    inside = outputs[2][0, :, 2:4, 4:6]  # the third stage has two positions along a cell's side
    torch.testing.assert_close(cells[0, :40, 1, 2], inside.mean((1, 2)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cells[0, 40:80, 1, 2], inside.std((1, 2), correction=0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(cells[:, -80:], outputs[-1])


def test_context_is_the_cell_and_the_whole(embedder: DistilledEmbedder) -> None:
    cells = 20 * torch.randn(2, embedder.inputs, 3, 5)
    own, whole = embedder.context(cells).chunk(2, dim=1)
    torch.testing.assert_close(own, cells.clamp(-5, 5))
    torch.testing.assert_close(whole, own.mean((2, 3), keepdim=True).expand_as(own))


def test_folding_changes_no_token(embedder: DistilledEmbedder) -> None:
    embedder.train()
    embedder(torch.randn(4, 3, 64, 64))
    embedder.eval()
    x = torch.randn(1, 3, 64, 64)
    before = embedder(x)
    torch.testing.assert_close(embedder.fold()(x), before, atol=1e-4, rtol=1e-3)


def views(embedder: DistilledEmbedder, noise: float) -> list[View]:
    """Views whose teacher is a linear map of what the embedder sees, and noise."""
    true = torch.randn(10, 2 * embedder.inputs) / 10
    out = []
    for number in range(200):
        cells = torch.randn(embedder.inputs, 4, 4)
        taught = torch.einsum("oi,ihw->ohw", true, embedder.context(cells[None])[0])
        taught = taught + noise * taught.std() * torch.randn_like(taught)
        out.append(View(str(number), True, cells.half(), taught.half()))
    return out


def tokens(embedder: DistilledEmbedder, made: list[View]) -> torch.Tensor:
    return torch.cat([embedder.map(embedder.context(v.cells.float()[None]))[0].flatten(1).T for v in made])


def test_map_finds_a_linear_teacher(embedder: DistilledEmbedder) -> None:
    made = views(embedder, 0.0)
    assert fit_map(embedder, made, ridge=1.0) > 0.98
    found = tokens(embedder, made)
    torch.testing.assert_close(found.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(6), atol=1e-2, rtol=0)
    # The six axes hold what the ten numbers of the teacher vary in, so they tell most of it back.
    taught = torch.cat([v.teacher.float().flatten(1).T for v in made])
    centred = taught - taught.mean(0)
    back = torch.linalg.lstsq(found, centred).solution
    assert (centred - found @ back).square().sum() < 0.5 * centred.square().sum()


def test_explained_share_is_that_of_the_residuals(embedder: DistilledEmbedder) -> None:
    made = views(embedder, 1.0)
    share = fit_map(embedder, made, ridge=10.0)
    taught = torch.cat([v.teacher.float().flatten(1).T for v in made])
    sample = torch.cat([v.teacher.float().flatten(1).T for v in made[::5]])
    scaled = (sample - sample.mean(0)) / (sample.std(0) + 1e-4)
    axes = torch.linalg.eigh(scaled.T @ scaled / len(scaled)).eigenvectors.flip(1)[:, :6]
    target = (taught - sample.mean(0)) / (sample.std(0) + 1e-4) @ axes
    found = tokens(embedder, made)
    # The outputs were rescaled: undo it by regression of each target on its own output.
    centred = target - target.mean(0)
    fitted = found * (found * centred).mean(0) / found.square().mean(0)
    direct = 1 - (centred - fitted).square().sum() / centred.square().sum()
    assert share == pytest.approx(direct.item(), abs=0.01)


@pytest.mark.parametrize("compressed", [False, True])
def test_laundering_is_seeded(compressed: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for seed in range(6):
        first, second = (launder(image, compressed, 96, np.random.default_rng(seed)) for _ in range(2))
        assert first.size == (96, 96)
        assert first.tobytes() == second.tobytes()


def test_teacher_gives_open_clip_s_tokens(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    visual = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).visual.eval()
    path = tmp_path / "clip.safetensors"
    save_file({key: value.contiguous() for key, value in visual.state_dict().items()}, path)
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        y = visual.conv1(x).flatten(2).transpose(1, 2)
        y = torch.cat([visual.class_embedding.expand(1, 1, -1), y], 1) + visual.positional_embedding
        y = visual.ln_pre(y)
        for block in visual.transformer.resblocks[:3]:
            y = block(y)
        expected = functional.avg_pool2d(y[:, 1:].transpose(1, 2).unflatten(2, (14, 14)), 2)
        found = load_teacher(path, block=3, patch=32)(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_teacher_s_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(768, 3, 16, 16)}, path)
    with pytest.raises(WeightsError, match=r"other.safetensors: expected tensor 'cls_token'"):
        load_teacher(path, block=6, patch=32)
