"""Loading state dicts strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from detector_zoo.errors import WeightsError

__all__ = ["load_strictly"]


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], name: str, ignore: Sequence[str] = ()) -> None:
    """Load a state dict, or raise before anything is loaded.

    Args:
        module: What to fill.
        tensors: Its state; other floating-point types are converted.
        name: Of the weights, for the message.
        ignore: Keys of ``tensors`` that may be left over.

    Raises:
        WeightsError: A key is missing, left over, of another shape or of whole numbers (quantised); the message names
            the first such key.
    """
    expected = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {k: v for k, v in tensors.items() if k not in ignore and not k.endswith("num_batches_tracked")}
    for key, value in expected.items():
        if key not in given:
            raise WeightsError(f"{name}: expected tensor {key!r} of shape {tuple(value.shape)}, it is missing")
        if given[key].shape != value.shape:
            raise WeightsError(f"{name}: expected {key!r} of shape {tuple(value.shape)}, got {tuple(given[key].shape)}")
        if value.is_floating_point() and not given[key].is_floating_point():
            raise WeightsError(f"{name}: expected {key!r} of floating-point numbers, got {given[key].dtype}")
    for key, value in given.items():
        if key not in expected:
            raise WeightsError(f"{name}: expected no tensor {key!r}, got one of shape {tuple(value.shape)}")
    module.load_state_dict({key: given[key].to(value.dtype) for key, value in expected.items()}, strict=False)
