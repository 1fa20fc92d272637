"""Convolutions with what follows them: the same numbers by torch's private operations and by its public ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.networks import fused
from detector_zoo.networks.folding import fold
from detector_zoo.networks.resnet import ResNet50


@pytest.fixture(params=[True, False], ids=["private", "public"])
def private(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(fused, "_works", lambda: False)
    return bool(request.param)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).contiguous(
        memory_format=torch.channels_last
    )


def layer(kernel: int, stride: int, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(1)
    conv = nn.Conv2d(6, 8, kernel, stride, kernel // 2, bias=bias).requires_grad_(False)
    return conv.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (7, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(9, 13), (1, 1)])
def test_the_numbers_are_those_of_the_separate_steps(
    private: bool, kernel: int, stride: int, bias: bool, size: tuple[int, int]
) -> None:
    conv, x = layer(kernel, stride, bias=bias), random(2, 6, *size)
    plain = conv(x)
    added = random(*plain.shape, seed=2)
    with torch.inference_mode():
        torch.testing.assert_close(fused.conv_relu(conv, x), functional.relu(plain), atol=1e-5, rtol=1e-5)
        both = fused.conv_add_relu(conv, x, added.clone())
    torch.testing.assert_close(both, functional.relu(plain + added), atol=1e-5, rtol=1e-5)


def test_private_operations_are_used_on_this_machine_if_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the public operation was used")

    conv, x, works = layer(3, 1), random(1, 6, 8, 8), fused._works()
    monkeypatch.setattr(functional, "relu", refuse)
    if works:
        with torch.inference_mode():
            assert (fused.conv_relu(conv, x) >= 0).all()
    else:
        with torch.inference_mode(), pytest.raises(AssertionError, match="public"):
            fused.conv_relu(conv, x)


def test_gradients_go_through() -> None:
    conv, x = layer(3, 1).requires_grad_(True), random(1, 6, 8, 8)
    fused.conv_add_relu(conv, x, fused.conv_relu(conv, x)).sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.abs().sum() > 0


def test_autocast_is_respected() -> None:
    conv, x = layer(3, 1), random(1, 6, 8, 8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert fused.conv_relu(conv, x).dtype == torch.bfloat16


def test_a_torch_without_them_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Operations:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    fused._works.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", Operations(), raising=False)
    try:
        assert not fused._works()
    finally:
        fused._works.cache_clear()


def test_a_folded_network_gives_what_the_unfolded_one_does(private: bool) -> None:
    torch.manual_seed(3)
    network = ResNet50(1, 1).eval().requires_grad_(False)
    x = random(1, 3, 40, 33)
    with torch.inference_mode():
        expected = network(x)
        fold(network).to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)
        # Whatever is written in place, it is not the input.
        torch.testing.assert_close(x, random(1, 3, 40, 33), atol=0, rtol=0)
