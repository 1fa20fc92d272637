"""Images per second of every method against the plain loop that most published code runs, in one run.

    python benchmarks/methods.py [--method corvi] [--images 4] [--repeat 5] [--quick] [--compile] [--threads 2]

Ours is what `zoo score` does after decoding: each image's transform, then forward passes of 16 at a time. The plain
loop takes one image at a time through torchvision's transforms and a float32 network in NCHW without folding, built of
torchvision's, timm's, open_clip's or transformers' modules and none of this project's. Both hold the same random
weights at the paper's size, and their scores are compared before anything is timed. They are timed alternately; the
medians and their ratio are printed, and the ratio of processor seconds, which other load on the machine disturbs less.

To hold: at least 1.30 on a CPU for the convolutional networks, never below 1.00 for any; the exit status is 1 where
it does not. `--quick` takes smaller networks or images (marked in the table). `--compile` also times ours under
torch.compile, to see whether that would pay. What MDMF's head costs on top of its embedder is measured by
mdmf_head.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import torchvision
import transformers
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from detector_zoo import images, registry
from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.loading import LoadedDetector, import_target
from detector_zoo.registry import WeightSpec
from detector_zoo_patch_shuffle.network import PatchNetwork

BATCH = 16
CONVOLUTIONAL, ANY = 1.3, 1.0
BLOCK = torchvision.models.resnet.BasicBlock


@dataclass(frozen=True)
class Plain:
    """A network as published code has it: normalised images (1, 3, H, W) to a score, and its weights for ours."""

    network: nn.Module
    tensors: Mapping[str, Tensor]
    backbone: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        weights: Whose configuration and preprocessing.
        build: Makes the plain network that a spec describes.
        side: Of the square images.
        least: Ratio to hold.
        quick: Side for ``--quick``.
        quick_config: Likewise, what it changes in the configuration.
    """

    weights: str
    build: Callable[[WeightSpec], Plain]
    side: int
    least: float
    quick: int = 0
    quick_config: Mapping[str, Any] = field(default_factory=dict)


def resnet(spec: WeightSpec) -> Plain:
    network = torchvision.models.resnet50(num_classes=1)
    network.conv1.stride = (spec.config["conv1_stride"],) * 2
    network.maxpool.stride = spec.config["maxpool_stride"]
    network.fc.weight.data.abs_()  # Stay-Positive admits no other
    return Plain(network, network.state_dict())


class CLIPHead(nn.Module):
    """An image tower, open_clip's or transformers', and a linear layer."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower, self.fc = tower, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits, (N, 1)."""
        found = self.tower(x)
        return self.fc(found if isinstance(found, Tensor) else found.image_embeds)


def clip_frozen(spec: WeightSpec) -> Plain:
    sizes = open_clip.get_model_config(spec.config["model"])
    vision = sizes["vision_cfg"]
    config = transformers.CLIPVisionConfig(
        hidden_size=vision["width"],
        intermediate_size=4 * vision["width"],
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["width"] // vision.get("head_width", 64),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        projection_dim=sizes["embed_dim"],
        hidden_act="quick_gelu",
    )
    network = CLIPHead(transformers.CLIPVisionModelWithProjection(config), sizes["embed_dim"])
    return Plain(network, network.fc.state_dict(), network.tower.state_dict())


def clip_trained(spec: WeightSpec) -> Plain:
    model = open_clip.create_model(spec.config["model"])
    network = CLIPHead(model.visual, model.visual.output_dim)
    tensors = {key.replace("tower.", "visual."): value for key, value in network.state_dict().items()}
    return Plain(network, tensors)


def timm_model(spec: WeightSpec) -> Plain:
    network = timm.create_model(spec.config["model"], num_classes=1, **spec.config.get("arguments", {}))
    return Plain(network, network.state_dict())


class Patches(nn.Module):
    """Patch-shuffle on an image's patches, which go through it together."""

    def __init__(self, patch: int, depth: int, slots: int) -> None:
        super().__init__()
        self.patch = patch
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64, eps=1e-4), nn.ReLU()]
        for width in (64, 128, 256):
            shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, 2, bias=False), nn.BatchNorm2d(2 * width))
            layers += [BLOCK(width, 2 * width, 2, shortcut), BLOCK(2 * width, 2 * width)]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(512 * slots, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One normalised image (1, 3, H, W) to its logit."""
        patches = x.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        stacked = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, self.patch, self.patch)
        return self.linear(self.trunk(stacked).flatten()[None])


def patch_shuffle(spec: WeightSpec) -> Plain:
    slots = (spec.preprocessing["crop"] // spec.config["patch"]) ** 2
    network = Patches(**spec.config, slots=slots)
    # Alike in every slot, so that one order of the patches scores as the mean over all of them does.
    network.linear.weight.data[:] = network.linear.weight.data[:, :512].repeat(1, slots)
    names = PatchNetwork(**spec.config, slots=slots).state_dict()
    return Plain(network, dict(zip(names, network.state_dict().values(), strict=True)))


class Discrepancy(nn.Module):
    """MDMF on DINOv2, by the definition of its statistic: kernel matrices in full."""

    def __init__(self, model: str, img_size: int, patch: int, hidden: list[int], dim: int, bank: int) -> None:
        super().__init__()
        self.vit = timm.create_model(model, num_classes=0, img_size=img_size, dynamic_img_size=True)
        self.patch = patch
        widths = [self.vit.num_features, *hidden]
        layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.GELU())]
        self.phi = nn.Sequential(*layers, nn.Linear(widths[-1], dim))
        self.bank = nn.Parameter(torch.randn(bank, dim))
        self.bandwidth = dim**0.5

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Of all pairs."""
        return torch.exp(-torch.cdist(a, b).square() / (2 * self.bandwidth**2))

    def off_diagonal(self, a: Tensor) -> Tensor:
        """Mean over all pairs of two."""
        return (self.kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))

    def forward(self, x: Tensor) -> Tensor:
        """One normalised image (1, 3, H, W) to its MMD^2."""
        tokens = self.vit.forward_features(x)[:, self.vit.num_prefix_tokens :]
        stride = self.vit.patch_embed.patch_size[0]
        grid = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // stride, x.shape[3] // stride))
        patches = nn.functional.adaptive_avg_pool2d(grid, (x.shape[2] // self.patch, x.shape[3] // self.patch))
        signatures = self.phi(patches.flatten(2)[0].T)
        cross = self.kernel(signatures, self.bank).mean()
        return self.off_diagonal(signatures) - 2 * cross + self.bank_term

    def finish(self) -> None:
        """The bank's own term, which published code also computes once."""
        with torch.inference_mode():
            self.bank_term = self.off_diagonal(self.bank)


def mdmf(spec: WeightSpec) -> Plain:
    embedder = spec.config["embedder"]
    network = Discrepancy(embedder["name"], embedder["img_size"], embedder["patch"], **spec.config["head"])
    network.finish()
    head = {key: value for key, value in network.state_dict().items() if key.startswith("phi.")}
    head |= {
        "bank": network.bank.data,
        "bank_term": network.bank_term,
        "log_bandwidth": torch.tensor(network.bandwidth).log(),
    }
    return Plain(network, head, network.vit.state_dict())


CASES = (
    Case("cnnspot.blur_jpg_0_5", resnet, 384, CONVOLUTIONAL, quick=256),
    Case("corvi.latent", resnet, 256, CONVOLUTIONAL, quick=128),
    Case("stay_positive.corvi_plus", resnet, 256, CONVOLUTIONAL, quick=128),
    Case("patch_shuffle.official", patch_shuffle, 256, CONVOLUTIONAL),
    Case("inpx.resnet50", timm_model, 512, CONVOLUTIONAL),
    Case("inpx.efficientnet_b0", timm_model, 512, CONVOLUTIONAL),
    Case("inpx.vit_b16", timm_model, 512, ANY),
    Case("inpx.clip_vit_b32", clip_trained, 512, ANY),
    Case("ufd_clip.official", clip_frozen, 256, ANY, quick_config={"model": "ViT-B-32-quickgelu"}),
    Case("mdmf.dinov2_l14", mdmf, 448, ANY, quick_config={"embedder": {"name": "vit_small_patch14_dinov2.lvd142m"}}),
)


def transform_of(preprocessing: Mapping[str, Any]) -> v2.Compose:
    """Torchvision's transforms for a spec's constants; MDMF's tile is a crop where images are as large as it."""
    steps: list[nn.Module] = []
    if preprocessing.get("resize"):
        filters = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}
        steps.append(v2.Resize(preprocessing["resize"], filters[preprocessing["interpolation"]]))
    if preprocessing.get("crop"):
        steps.append(v2.CenterCrop(preprocessing["crop"]))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps.append(v2.Normalize(preprocessing["mean"], preprocessing["std"]))
    return v2.Compose(steps)


def picture(side: int, seed: int) -> Image.Image:
    """Smooth random colour with grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((side, side), 3)
    grain = random.normal(0, 6, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - used


def measure(case: Case, args: argparse.Namespace) -> bool:
    """Print a case's line; whether its ratio holds."""
    info, spec = registry.resolve(case.weights)
    assert spec is not None
    quick = args.quick and (case.quick or case.quick_config)
    side = case.quick if quick and case.quick else case.side
    if quick:
        changed = {k: spec.config[k] | v if isinstance(v, dict) else v for k, v in case.quick_config.items()}
        spec = replace(spec, config={**spec.config, **changed})
    torch.manual_seed(0)
    plain = case.build(spec)
    network = plain.network.eval().requires_grad_(False)
    built = import_target(info).from_weights(Weights(spec=spec, tensors=plain.tensors, backbone=plain.backbone))
    assert isinstance(built, TorchDetector)
    ours = LoadedDetector(info=info, spec=spec, detector=built)
    decoded = [images.decode(picture(side, seed)) for seed in range(args.images)]
    transform = transform_of(spec.preprocessing)

    def run_ours() -> list[float]:
        raw: list[float] = []
        for start in range(0, len(decoded), BATCH):
            raw += ours.forward([ours.prepare(item) for item in decoded[start : start + BATCH]]).tolist()
        return raw

    def run_plain() -> list[float]:
        with torch.no_grad():
            return [network(transform(item.image)[None]).item() for item in decoded]

    # The first run of each also warms the allocator up.
    np.testing.assert_allclose(run_ours(), run_plain(), rtol=1e-3, atol=1e-4, err_msg=case.weights)
    works: dict[str, Callable[[], object]] = {"ours": run_ours, "plain": run_plain}
    if args.compile:
        eager, compiled = built.logits, torch.compile(built.logits)

        def run_compiled() -> None:
            built.logits = compiled  # type: ignore[method-assign]
            run_ours()
            built.logits = eager  # type: ignore[method-assign]

        run_compiled()
        works["compiled"] = run_compiled
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(args.repeat):
        for name, work in works.items():
            taken[name].append(timed(work))
    clock = {name: statistics.median(wall for wall, _ in times) for name, times in taken.items()}
    used = {name: statistics.median(cpu for _, cpu in times) for name, times in taken.items()}
    ratio = clock["plain"] / clock["ours"]
    line = f"{case.weights:<25}{side:5d} px  {args.images / clock['ours']:8.2f}  {args.images / clock['plain']:8.2f}"
    line += f"  {ratio:6.2f}  {used['plain'] / used['ours']:6.2f}  {case.least:7.2f}"
    if args.compile:
        line += f"  {args.images / clock['compiled']:8.2f}"
    print(line + ("  quick" if quick else "") + ("" if ratio >= case.least else "  MISSED"), flush=True)
    return ratio >= case.least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", action="append", help="a method, or method.tag; repeatable; all by default")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    cases = [case for case in CASES if not args.method or {case.weights, case.weights.split(".")[0]} & {*args.method}]
    if not cases:
        parser.error(f"no such method; there are {', '.join(case.weights for case in CASES)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    print(
        f"{args.images} images, {torch.get_num_threads()} threads, torch {torch.__version__}, medians of {args.repeat}"
    )
    print(f"{'':35}images/s: ours     plain   ratio    (cpu)  to hold" + ("  compiled" if args.compile else ""))
    held = [measure(case, args) for case in cases]
    if not all(held):
        sys.exit(1)


if __name__ == "__main__":
    main()
