"""The embedder of mdmf.lite: its tokens, the map that it is taught, the teacher."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import tiny_clip
from detector_zoo.errors import WeightsError
from detector_zoo.networks.clip import load_tower
from detector_zoo.networks.folding import fold
from detector_zoo_mdmf.distil import fit_map
from detector_zoo_mdmf.distilled import DistilledEmbedder
from detector_zoo_mdmf.laundering import launder
from detector_zoo_mdmf.teacher import ClipEmbedder, load_teacher


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
    torch.testing.assert_close(fold(embedder)(x), before, atol=1e-4, rtol=1e-3)
    assert not [module for module in embedder.modules() if isinstance(module, nn.BatchNorm2d)]


def views(embedder: DistilledEmbedder, noise: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cells, and tokens of a teacher is a linear map of what the embedder sees, and noise."""
    true = torch.randn(10, 2 * embedder.inputs) / 10
    out = []
    for _ in range(200):
        cells = torch.randn(embedder.inputs, 4, 4)
        taught = torch.einsum("oi,ihw->ohw", true, embedder.context(cells[None])[0])
        taught = taught + noise * taught.std() * torch.randn_like(taught)
        out.append((cells.half(), taught.half()))
    return out


def tokens(embedder: DistilledEmbedder, made: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([embedder.map(embedder.context(cells.float()[None]))[0].flatten(1).T for cells, _ in made])


def test_map_finds_a_linear_teacher(embedder: DistilledEmbedder) -> None:
    made = views(embedder, 0.0)
    assert fit_map(embedder, made, ridge=1.0) > 0.98
    found = tokens(embedder, made)
    torch.testing.assert_close(found.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(6), atol=1e-2, rtol=0)
    # The six axes hold what the ten numbers of the teacher vary in, so they tell most of it back.
    taught = torch.cat([grid.float().flatten(1).T for _, grid in made])
    centred = taught - taught.mean(0)
    back = torch.linalg.lstsq(found, centred).solution
    assert (centred - found @ back).square().sum() < 0.5 * centred.square().sum()


def test_explained_share_is_that_of_the_residuals(embedder: DistilledEmbedder) -> None:
    made = views(embedder, 1.0)
    share = fit_map(embedder, made, ridge=10.0)
    taught = torch.cat([grid.float().flatten(1).T for _, grid in made])
    sample = torch.cat([grid.float().flatten(1).T for _, grid in made[::5]])
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


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_teacher_gives_open_clip_s_tokens(tmp_path: Path, layout: str) -> None:
    tiny_clip.register(tmp_path / "configs")
    published = tiny_clip.published(tiny_clip.theirs())
    tower: Any = load_tower(tiny_clip.NAME, published, "tiny")
    state = published if layout == "transformers" else dict(tower.state_dict())
    path = tmp_path / "clip.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    x = torch.randn(2, 3, tiny_clip.SIDE, tiny_clip.SIDE)
    with torch.inference_mode():
        y = tower._embeds(x)
        for block in tower.transformer.resblocks[:2]:
            y = block(y)
        expected = functional.avg_pool2d(y[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), 2)
        taught, sha256 = load_teacher(str(path), tiny_clip.NAME, block=2, patch=16)
        found = taught(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_teacher_interpolates_its_positions_as_timm_does(tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    tiny_clip.register(tmp_path / "configs")
    taught = ClipEmbedder(tiny_clip.NAME, tiny_clip.published(tiny_clip.theirs()), "tiny", block=1, patch=8).eval()
    x = torch.randn(1, 3, 48, 40)
    with torch.inference_mode():
        found = taught(x)
        tower: Any = copy.deepcopy(taught.tower)
        places = tower.positional_embedding[None]
        moved = resample_abs_pos_embed(places, [6, 5], list(tower.grid_size), antialias=True)
        tower.positional_embedding = nn.Parameter(moved[0])
        expected = tower.transformer.resblocks[0](tower._embeds(x))[:, 1:]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, atol=1e-4, rtol=0)


def test_teacher_s_file_is_read_strictly(tmp_path: Path) -> None:
    tiny_clip.register(tmp_path / "configs")
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(tiny_clip.WIDTH, 3, 8, 8)}, path)
    with pytest.raises(WeightsError, match=r"other.safetensors: expected tensor 'class_embedding'"):
        load_teacher(str(path), tiny_clip.NAME, block=1, patch=8)
    with pytest.raises(WeightsError, match=r"teacher .*none.safetensors: no such file"):
        load_teacher(str(tmp_path / "none.safetensors"), tiny_clip.NAME, block=1, patch=8)
    with pytest.raises(WeightsError, match="tiny: block 4 is not one of the 3"):
        ClipEmbedder(tiny_clip.NAME, tiny_clip.published(tiny_clip.theirs()), "tiny", block=4, patch=8)
