"""The tiny FLUX.2 autoencoder (TAEF2, MIT, madebyollin/taesd): the generator that training pairs are made with.

Only its layout is here; the tensors are read from ``taef2_encoder.pth`` and ``taef2_decoder.pth``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["TAEF2", "load_taef2"]

WIDTH, LATENT, FACTOR = 64, 32, 8


class _Clamp(nn.Module):
    """Soft clamp of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    """Three 3x3 convolutions with a skip; at the lowest resolution a normalised 1x1 branch joins the input."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), _Block(False)]
    for level in range(3):
        layers.append(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2, bias=False))
        layers += [_Block(level == 2) for _ in range(3)]
    layers.append(nn.Conv2d(WIDTH, LATENT, 3, padding=1))
    return nn.Sequential(*layers)


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), nn.Conv2d(LATENT, WIDTH, 3, padding=1), nn.ReLU()]
    for level in range(3):
        layers += [_Block(level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]
    layers += [_Block(False), nn.Conv2d(WIDTH, 3, 3, padding=1)]
    return nn.Sequential(*layers)


class TAEF2(nn.Module):
    """Encoder and decoder between RGB in [0, 1] and 32 latent channels at an eighth of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()
        self.decoder = _decoder()

    def encode(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], sides multiples of 8, to (N, 32, H / 8, W / 8)."""
        latents: Tensor = self.encoder(x)
        return latents

    def decode(self, z: Tensor) -> Tensor:
        """(N, 32, h, w) to (N, 3, 8 h, 8 w), clamped to [0, 1]."""
        image: Tensor = self.decoder(z)
        return image.clamp(0, 1)


def load_taef2(folder: Path) -> TAEF2:
    """Read the autoencoder's two files from ``folder``, strictly; evaluation mode, no gradients."""
    model = TAEF2()
    for part in ("encoder", "decoder"):
        state = torch.load(folder / f"taef2_{part}.pth", weights_only=True, map_location="cpu")
        getattr(model, part).load_state_dict(state)
    return model.eval().requires_grad_(False)
