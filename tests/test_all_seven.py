"""The seven methods side by side: what is registered, and one decode a file however many of them score it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import resnets
import tiny_clip
from detector_zoo import images, load, registry
from detector_zoo.cli import main
from detector_zoo.detector import Weights
from detector_zoo.loading import LoadedDetector, import_target
from detector_zoo.plugins import list_detectors
from detector_zoo.scoring import Options, run
from detector_zoo.weights import instantiate

from conftest import encoded, photo

SEVEN = ("cnnspot", "corvi", "inpx", "mdmf", "patch_shuffle", "stay_positive", "ufd_clip")
PUBLISHED = resnets.PUBLISHED | {
    "inpx": "inpx.resnet50",
    "patch_shuffle": "patch_shuffle.official",
    "ufd_clip": "ufd_clip.official",
}
SQUARE = {"mean": [0.5] * 3, "std": [0.5] * 3, "exif_orientation": "ignore"}


def test_the_seven_are_there_and_tell_all_that_a_reader_needs() -> None:
    found = {info.name: info for info in list_detectors() if not info.control}
    assert tuple(sorted(found)) == SEVEN
    for name, info in found.items():
        assert info.paper is not None, name
        assert info.paper.bibtex.startswith("@"), name
        shown = CliRunner().invoke(main, ["info", name]).output
        assert info.paper.title in shown
        assert "\nlimits\n" in shown, name
        for spec in registry.specs_of(name):
            assert spec.name in shown
            assert spec.verified or spec.why in shown
        assert info.card is not None
        card = info.card.read_text("utf-8")
        for heading in ("## Training data", "## Results", "## Limits and known shortcuts", "## Licence"):
            assert f"\n{heading}\n" in card, (name, heading)


def test_every_method_has_an_entry_whose_licence_and_origin_are_told() -> None:
    for name in SEVEN:
        for spec in registry.specs_of(name):
            assert spec.source is None or spec.licence, spec.name
            assert spec.verified or spec.why, spec.name
            assert spec.preprocessing.get("exif_orientation") in {"apply", "ignore"}, spec.name


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[LoadedDetector]:
    """All seven, those without weights of their own with random ones, the large networks among them small."""
    tiny_clip.register(tmp_path_factory.mktemp("open_clip"))
    resnet = {name: resnets.state(nonnegative=name == "stay_positive") for name in resnets.STRIDES}
    clip = {"model": tiny_clip.NAME}
    small: dict[str, dict[str, Any]] = {
        "ufd_clip": {"config": clip, "preprocessing": SQUARE | {"crop": tiny_clip.SIDE}, "backbone": None},
        "patch_shuffle": {"config": {"patch": 16, "depth": 1}, "preprocessing": SQUARE | {"crop": 32}},
        "inpx": {
            "config": {"library": "timm", "model": "resnet18", "heatmap": "gradcam"},
            "preprocessing": SQUARE | {"resize": [64, 64]},
        },
    }
    found = [load("mdmf", device="cpu")]
    for name in SEVEN:
        if name == "mdmf":
            continue
        info, spec = registry.resolve(PUBLISHED[name])
        assert spec is not None
        spec = replace(spec, **small.get(name, {}))
        target = import_target(info)
        weights = Weights(spec, resnet.get(name) or _random(name, spec), _backbone(name))
        found.append(LoadedDetector(info=info, spec=spec, detector=instantiate(target, weights)))
    return found


def _random(name: str, spec: registry.WeightSpec) -> Any:
    if name == "ufd_clip":
        from torch import nn

        return tiny_clip.seeded(nn.Linear(tiny_clip.WIDTH, 1))
    if name == "inpx":
        from detector_zoo_inpx.networks import build

        return tiny_clip.seeded(build(spec.config))
    from detector_zoo_patch_shuffle.network import PatchNetwork

    return tiny_clip.seeded(PatchNetwork(**spec.config, slots=4))


def _backbone(name: str) -> Any:
    return tiny_clip.published(tiny_clip.theirs()) if name == "ufd_clip" else {}


@pytest.mark.parametrize("maps", [False, True], ids=["scores", "heatmaps"])
def test_each_file_is_read_and_decoded_once(
    loaded: list[LoadedDetector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps: bool
) -> None:
    paths = []
    for i, size in enumerate([(90, 70), (64, 64), (90, 70)]):
        paths.append(str(tmp_path / f"{i}.png"))
        Path(paths[-1]).write_bytes(encoded(photo(*size, seed=i)))
    reads: list[str] = []
    decodes: list[str] = []
    read, decode = images.read_file, images.decode

    def counted_read(path: str) -> bytes:
        reads.append(path)
        return read(path)

    def counted_decode(*arguments: Any, **options: Any) -> images.DecodedImage:
        decodes.append(options["name"])
        return decode(*arguments, **options)

    monkeypatch.setattr(images, "read_file", counted_read)
    monkeypatch.setattr(images, "decode", counted_decode)
    options = Options(heatmaps=tmp_path / "maps" if maps else None)
    (tmp_path / "maps").mkdir()
    rows = [row for rows in run(paths, loaded, options) for row in rows]
    assert sorted(reads) == paths
    assert sorted(decodes) == paths
    assert len(rows) == len(paths) * len(SEVEN)
    assert [row.error for row in rows if row.error] == []
    assert {row.detector for row in rows} == set(SEVEN)
    drawn = {path.name.split(".")[2] for path in (tmp_path / "maps").iterdir()}
    assert drawn == ({name for name in SEVEN if name != "ufd_clip"} if maps else set())
