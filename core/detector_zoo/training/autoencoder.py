"""Autoencoders of latent generators: what aligned pairs and latent edits are made with.

Two kinds are read: the tiny ones of madebyollin/taesd from their own files (TAESD, TAEF1, TAEF2, ...: plain
convolutions, their module is here), and diffusers' ``AutoencoderKL`` and ``AutoencoderTiny``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detector_zoo.convert import one_line, read_safetensors, read_tensors, sha256_of
from detector_zoo.download import offline
from detector_zoo.errors import WeightsError
from detector_zoo.networks.state import load_strictly

__all__ = ["Autoencoder", "TinyAutoencoder", "load_autoencoder", "to_batch", "to_pixels"]

WIDTH = 64
Precision = Literal["fp32", "bf16"]

_DIFFUSERS = ("AutoencoderKL", "AutoencoderTiny")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


class _Clamp(nn.Module):
    """Soft clamp of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    """Three 3x3 convolutions with a skip; where ``pooled``, a normalised 1x1 branch first joins the input."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        convolutions: list[nn.Module] = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
        for _ in range(2):
            convolutions += [nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
        self.conv = nn.Sequential(*convolutions)
        self.pool: nn.Module | None = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class TinyAutoencoder(nn.Module):
    """The architecture of madebyollin/taesd, 8x down; its state is that of the published files, by layer index.

    Args:
        latent: Channels of the latents: 4 (TAESD), 16 (TAEF1), 32 (TAEF2).
        pooled: Whether the blocks at the lowest resolution have the normalised branch, as TAEF2's do.
    """

    def __init__(self, latent: int = 32, pooled: bool = True) -> None:
        super().__init__()
        encoder: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), _Block(False)]
        for level in range(3):
            encoder.append(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2, bias=False))
            encoder += [_Block(pooled and level == 2) for _ in range(3)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(WIDTH, latent, 3, padding=1))
        decoder: list[nn.Module] = [_Clamp(), nn.Conv2d(latent, WIDTH, 3, padding=1), nn.ReLU()]
        for level in range(3):
            decoder += [_Block(pooled and level == 0) for _ in range(3)]
            decoder += [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*decoder, _Block(False), nn.Conv2d(WIDTH, 3, 3, padding=1))


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """An encoder and its decoder, ready to run.

    Attributes:
        name: What a manifest calls the generator.
        hashes: sha256 of the files of weights.
        factor: Pixels a latent cell spans along each side; images must be multiples of it.
        encode: RGB (N, 3, H, W) in [0, 1] to latents (N, C, H / factor, W / factor), without sampling.
        decode: Latents to RGB (N, 3, H, W) in [0, 1].
    """

    name: str
    hashes: tuple[str, ...]
    factor: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def to_batch(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def to_pixels(batch: Tensor) -> NDArray[np.uint8]:
    """The first of (N, 3, H, W) in [0, 1] to (H, W, 3) uint8, rounded."""
    pixels: NDArray[np.uint8] = (batch[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels)


def load_autoencoder(
    place: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    device: str = "cpu",
    precision: Precision = "fp32",
) -> Autoencoder:
    """Load an autoencoder; no code of its publisher is run.

    Args:
        place: A tiny autoencoder's files: one safetensors file with ``encoder.`` and ``decoder.`` tensors, one of a
            pair ``X_encoder``, ``X_decoder`` (``.safetensors``, or ``.pth`` of tensors only), or a folder with one
            such pair; or diffusers' ``config.json`` with safetensors, in a folder or a repository OWNER/NAME of the
            Hub. What exists as a file or folder is no repository.
        revision: Commit, tag or branch of a repository; its main branch by default.
        subfolder: Of the repository or the folder, such as ``vae``.
        device: A torch device.
        precision: ``bf16`` computes in bfloat16 where that loses little, as generators are run in practice.

    Raises:
        WeightsError: Nothing usable is there, the tensors do not fit, diffusers is missing, or a download failed.
    """
    path = Path(place)
    if not path.exists():
        if not _REPO.fullmatch(place):
            raise WeightsError(f"{place}: no such file or folder, and no repository OWNER/NAME")
        path = _from_hub(place, revision, subfolder)
        found = _diffusers(path / subfolder, f"{place}@{path.name[:12]}", device)
    elif (path / subfolder / "config.json").is_file():
        found = _diffusers(path / subfolder, (path / subfolder).resolve().name, device)
    else:
        found = _tiny(path / subfolder, device)
    return found if precision == "fp32" else _in_bfloat16(found, device)


def _in_bfloat16(model: Autoencoder, device: str) -> Autoencoder:
    kind = torch.device(device).type

    def under(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.autocast(kind, torch.bfloat16):
                return step(x).float()

        return run

    return replace(model, encode=under(model.encode), decode=under(model.decode))


def _tiny(path: Path, device: str) -> Autoencoder:
    files = _tiny_files(path)
    if len(files) == 1:
        state = read_safetensors(files[0])
        name = files[0].stem
    else:
        parts = {part: read_tensors(file) for part, file in zip(("encoder", "decoder"), files, strict=True)}
        state = {f"{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}
        name = re.sub(r"[_.-]?encoder$", "", files[0].stem) or files[0].resolve().parent.name
    # The bias of the encoder's last convolution has one number a latent channel.
    last = state.get(f"encoder.{len(TinyAutoencoder().encoder) - 1}.bias")
    if last is None or last.ndim != 1:
        raise WeightsError(f"{path}: not an autoencoder in the layout of madebyollin/taesd")
    model = TinyAutoencoder(len(last), any(".pool." in key for key in state))
    load_strictly(model, state, str(path))
    model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def decode(z: Tensor) -> Tensor:
        image: Tensor = model.decoder(z.to(device))
        return image.clamp(0, 1)

    def encode(x: Tensor) -> Tensor:
        latents: Tensor = model.encoder(x.to(device, memory_format=torch.channels_last))
        return latents

    return Autoencoder(name, tuple(map(sha256_of, files)), 8, encode, decode)


def _tiny_files(path: Path) -> list[Path]:
    """Of a tiny autoencoder: one file with both halves, or encoder and decoder."""
    if path.is_dir():
        found = sorted(f for f in path.iterdir() if f.stem.endswith("encoder") and f.suffix in {".safetensors", ".pth"})
        if len(found) != 1:
            what = "no" if not found else f"{len(found)}"
            raise WeightsError(f"{path}: {what} *encoder file and no config.json", hint="name the file of the encoder")
        path = found[0]
    half = re.fullmatch(r"(.*)(encoder|decoder)", path.stem)
    if half is None:
        return [path]
    files = [path.with_name(f"{half[1]}{part}{path.suffix}") for part in ("encoder", "decoder")]
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{path}: its other half {file.name} is not beside it")
    return files


def _from_hub(repo: str, revision: str | None, subfolder: str) -> Path:
    """A snapshot in the Hub's cache, in a folder named after its commit."""
    from huggingface_hub import snapshot_download

    prefix = f"{subfolder}/" if subfolder else ""
    patterns = [f"{prefix}config.json", f"{prefix}diffusion_pytorch_model.safetensors"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    # Which exceptions come is up to the versions of huggingface_hub and its HTTP client.
    except Exception as error:
        hint = "HF_HUB_OFFLINE is set" if offline() else "check the name, the revision and the network"
        raise WeightsError(f"{repo}: cannot be fetched from the Hub: {one_line(error)}", hint=hint) from error


def _diffusers(folder: Path, name: str, device: str) -> Autoencoder:
    import json

    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder}: no config.json of an autoencoder", hint="in a pipeline's repository it is in: --subfolder vae"
        ) from error
    if kind not in _DIFFUSERS:
        raise WeightsError(f"{folder}: is a {kind}, expected {' or '.join(_DIFFUSERS)}")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder}: has no safetensors", hint="other formats are not read: they can run code")
    try:
        model: Any = getattr(import_module("diffusers"), kind)
    except ImportError as error:
        raise WeightsError(f"{kind} needs diffusers", hint="pip install 'detector-zoo[train]'") from error
    try:
        model = model.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    # Damaged files and configurations that do not fit provoke exceptions of many kinds.
    except Exception as error:
        raise WeightsError(f"{folder}: cannot be loaded as {kind}: {one_line(error)}") from error
    model.eval().requires_grad_(False).to(device)

    def encode(x: Tensor) -> Tensor:
        found = model.encode(x.to(device) * 2 - 1)
        latents: Tensor = found.latent_dist.mode() if kind == "AutoencoderKL" else found.latents
        return latents

    def decode(z: Tensor) -> Tensor:
        image: Tensor = model.decode(z.to(device)).sample
        return (image / 2 + 0.5).clamp(0, 1)

    with torch.inference_mode():
        probe = 256
        factor = probe // encode(torch.zeros(1, 3, probe, probe)).shape[-1]
    return Autoencoder(name, tuple(map(sha256_of, files)), factor, encode, decode)
