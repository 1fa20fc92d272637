"""A backbone is held once: whoever asks for it, on which device, and for how long."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tiny_clip
from detector_zoo import load, registry, weights
from detector_zoo.detector import Weights
from detector_zoo.networks.shared import BackboneDetector, shared
from detector_zoo.registry import WeightSpec


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.fc = nn.Linear(3, 3)


def fresh() -> nn.Module:
    return Backbone()


def never() -> nn.Module:
    raise AssertionError("it is there already")


def test_one_module_a_key() -> None:
    first = shared("one", fresh)
    assert shared("one", never) is first
    assert shared("two", fresh) is not first
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_it_goes_with_its_last_user() -> None:
    first = shared("gone", fresh)
    alive = weakref.ref(first)
    second = shared("gone", never)
    del first
    gc.collect()
    assert alive() is second
    del second
    gc.collect()
    assert alive() is None
    assert shared("gone", fresh) is not None


def test_a_failure_leaves_nothing() -> None:
    with pytest.raises(AssertionError):
        shared("fails", never)
    assert shared("fails", fresh) is not None


def test_another_device_gets_a_copy_and_the_first_stays() -> None:
    here = shared("device", fresh)
    there = shared("device", lambda: here, "meta")
    assert there is not here
    assert {tensor.device.type for tensor in there.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in here.state_dict().values()} == {"cpu"}
    assert [name for name, _ in there.named_parameters()] == [name for name, _ in here.named_parameters()]
    assert not any(parameter.requires_grad for parameter in there.parameters())
    assert shared("device", never, torch.device("meta")) is there
    assert shared("device", never) is here


def test_a_detector_moves_without_moving_others() -> None:
    first, second = (BackboneDetector(nn.Linear(3, 1), "moves", fresh) for _ in range(2))
    here = first.backbone
    assert second.backbone is here
    assert first.to("meta").backbone is not here
    assert (first.device.type, next(first.backbone.parameters()).device.type) == ("meta", "meta")
    assert second.backbone is here
    assert second.to("cpu").backbone is here
    assert second.to("meta").backbone is first.backbone


def test_threads_that_ask_at_once_get_the_same() -> None:
    built: list[nn.Module] = []
    found: list[nn.Module] = []

    def slowly() -> nn.Module:
        time.sleep(0.05)
        built.append(Backbone())
        return built[-1]

    threads = [threading.Thread(target=lambda: found.append(shared("threads", slowly))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert {id(module) for module in found} == {id(built[0])}


def test_tensors_without_a_file_are_nobody_elses() -> None:
    spec = WeightSpec(name="a.b", backbone="backbone.x")
    tensors = {"x": torch.zeros(1)}
    one, two = Weights(spec, {}, tensors), Weights(spec, {}, tensors)
    assert BackboneDetector.key_of(one) != BackboneDetector.key_of(two)


# ----------------------------------------------------------------------------------------------- through load()


@pytest.fixture
def catalogue(own_home: Path, tmp_path: Path) -> Path:
    """`ufd_clip.one` and `.two` on one backbone, and `.gelu`, which reads the same file as another network."""
    tiny_clip.register(tmp_path)
    lines = ["schema_version: 1", "weights:"]
    model = tiny_clip.theirs()
    head = {"weight": torch.randn(1, tiny_clip.WIDTH), "bias": torch.zeros(1)}
    inputs = f"{{mean: [0, 0, 0], std: [1, 1, 1], crop: {tiny_clip.SIDE}}}"
    for tag, name in (("one", tiny_clip.NAME), ("two", tiny_clip.NAME), ("gelu", tiny_clip.GELU)):
        lines.append(
            f"  ufd_clip.{tag}: {{source: 'file:', why: a test, backbone: backbone.tiny, config: {{model: {name}}},"
            f" preprocessing: {inputs}, variants: {{squash: {{resize: [40, 40]}}}}}}"
        )
    lines.append("  backbone.tiny: {source: 'file:', why: a test}")
    (own_home / "registry.yaml").write_text("\n".join(lines))
    registry.registry.cache_clear()
    save_file(tiny_clip.published(model), tmp_path / "tiny.safetensors")
    from detector_zoo.weights_import import import_file

    import_file("backbone.tiny", tmp_path / "tiny.safetensors")
    save_file(head, tmp_path / "head.safetensors")
    for tag in ("one", "two", "gelu"):
        import_file(f"ufd_clip.{tag}", tmp_path / "head.safetensors")
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of weights that are read, in order."""
    found: list[Path] = []
    read = weights.read

    def recording(path: Path) -> dict[str, Tensor]:
        found.append(path)
        return read(path)

    monkeypatch.setattr(weights, "read", recording)
    return found


def test_two_detectors_hold_one_module_and_read_its_file_once(catalogue: Path, reads: list[Path]) -> None:
    gc.collect()
    one, two, other = (
        load(name, device="cpu").detector for name in ("ufd_clip.one", "ufd_clip.two@squash", "ufd_clip.gelu")
    )
    assert isinstance(one, BackboneDetector)
    assert isinstance(two, BackboneDetector)
    assert isinstance(other, BackboneDetector)
    assert one.backbone is two.backbone
    assert other.backbone is not one.backbone, "the same file, another network"
    assert [path.name for path in reads].count("backbone.tiny.safetensors") == 2

    alive = weakref.ref(one.backbone)
    del one
    gc.collect()
    assert alive() is two.backbone
    del two
    gc.collect()
    assert alive() is None
    load("ufd_clip.one", device="cpu")
    assert [path.name for path in reads].count("backbone.tiny.safetensors") == 3


def test_a_wrong_head_is_refused_before_the_backbone_is_read(catalogue: Path, reads: list[Path]) -> None:
    from detector_zoo.errors import WeightsError
    from detector_zoo.weights_import import import_file

    save_file({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, catalogue / "wrong.safetensors")
    with pytest.raises(WeightsError, match=r"expected 'weight' of shape \(1, 32\), got \(1, 7\)"):
        import_file("ufd_clip.mine", catalogue / "wrong.safetensors", like="ufd_clip.one")
    assert not [path for path in reads if path.name.startswith("backbone.")]
