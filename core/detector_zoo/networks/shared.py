"""Public backbones, loaded once however many heads stand on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from itertools import chain
from threading import RLock
from weakref import WeakValueDictionary

import torch
from torch import nn

from detector_zoo.detector import TorchDetector, Weights

__all__ = ["BackboneDetector", "shared"]

_alive: WeakValueDictionary[tuple[Hashable, torch.device], nn.Module] = WeakValueDictionary()
_lock = RLock()


def shared(key: Hashable, build: Callable[[], nn.Module], device: str | torch.device = "cpu") -> nn.Module:
    """The one module of this key on this device; it lives as long as somebody uses it.

    Args:
        key: Which network, of which file of weights.
        build: Makes it where there is none yet; only then is it called, and one thread at a time.
        device: Where it has to be. A module is never moved under those who use it elsewhere: it is copied.

    Returns:
        Frozen, in evaluation mode.
    """
    # An empty tensor knows the whole name of the device: "cuda" and "cuda:0" may be the same one.
    where = torch.empty(0, device=device).device
    with _lock:
        found = _alive.get((key, where))
        if found is None:
            found = _on(build().eval().requires_grad_(False), where)
            _alive[key, where] = found
        return found


def _on(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself if it is there already, else a copy of it, whose tensors are copied once and not twice."""
    tensors = list(chain(module.parameters(), module.buffers()))
    if all(tensor.device == device for tensor in tensors):
        return module
    moved: dict[int, object] = {}
    for tensor in tensors:
        there = tensor.detach().to(device)
        moved[id(tensor)] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there
    return copy.deepcopy(module, moved)


class BackboneDetector(TorchDetector):
    """A head on a backbone that others may use too: ``network`` is the head, ``backbone`` stays apart.

    Args:
        head: What of the network is this detector's own.
        key: Of the backbone, see `shared`; whatever its architecture is configured by has to be part of it.
        build: Of the backbone.
    """

    backbone: nn.Module

    def __init__(self, head: nn.Module, key: Hashable, build: Callable[[], nn.Module]) -> None:
        self.network = head.eval().requires_grad_(False)
        self._key = key
        self.backbone = shared(key, build)

    @staticmethod
    def key_of(weights: Weights) -> Hashable:
        """What tells the file of these weights' backbone from any other.

        That is its name in the catalogue. Tensors that were handed over in a dict, not read from a catalogue's file,
        may be any and are nobody else's.
        """
        return object() if isinstance(weights.backbone, dict) else weights.spec.backbone

    def to(self, device: str | torch.device) -> BackboneDetector:
        """Move the head, and use the backbone of that device; returns self."""
        super().to(device)
        here = self.backbone
        self.backbone = shared(self._key, lambda: here, device)
        return self
