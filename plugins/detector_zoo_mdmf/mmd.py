"""Patch forensic signatures and the maximum mean discrepancy between an image's and a bank of real ones.

Notation of the paper (arXiv 2605.09296): phi the signature of a token, k the deep Gaussian kernel, x the
signatures of the image (n of them), r those of the bank (N).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["SignatureHead", "criterion", "mean_kernel", "mmd2_unbiased"]

BLOCK = 512
"""Bank signatures that a kernel matrix holds at once: bounds the memory, changes no value."""


def kernel(a: Tensor, b: Tensor, bandwidth: Tensor | float) -> Tensor:
    """k(a, b) = exp(-|a - b|^2 / (2 s^2)).

    Args:
        a: Signatures, (..., n, d).
        b: Signatures, (..., m, d).
        bandwidth: s, in the signatures' unit.

    Returns:
        (..., n, m), in (0, 1].
    """
    a, b = a / bandwidth, b / bandwidth
    left, right = -0.5 * a.square().sum(-1, keepdim=True), -0.5 * b.square().sum(-1, keepdim=True)
    # The exponent, -|a|^2 / 2 - |b|^2 / 2 + ab, as one product: the kernel matrix is written once and read once.
    ones_a, ones_b = torch.ones_like(left), torch.ones_like(right)
    exponent = torch.cat([a, left, ones_a], -1) @ torch.cat([b, ones_b, right], -1).transpose(-1, -2)
    # Below e^-87 single precision goes denormal, where a CPU computes a hundred times as slowly. Learning needs the
    # exponent as it was; scoring need not allocate a second matrix.
    clamped = exponent.clamp(min=-80) if torch.is_grad_enabled() else exponent.clamp_(min=-80)
    return clamped.exp_()


def mean_kernel(a: Tensor, b: Tensor, bandwidth: Tensor | float, block: int = BLOCK) -> Tensor:
    """Mean over ``b`` of k(a, b), block by block: (..., n, d) and (..., m, d) to (..., n)."""
    total = a.new_zeros(a.shape[:-1])
    for start in range(0, b.shape[-2], block):
        total = total + kernel(a, b[..., start : start + block, :], bandwidth).sum(-1)
    return total / b.shape[-2]


def self_mean(x: Tensor, bandwidth: Tensor | float, block: int = BLOCK) -> Tensor:
    """Mean of k(x_i, x_j) over i != j: (..., n, d) to (...).

    The diagonal, n ones, is left out: it would add 1/n and so leak the image's size into its score. The kernel is
    symmetric, so only the blocks on one side of the diagonal are evaluated.
    """
    count = x.shape[-2]
    total = x.new_zeros(x.shape[:-2])
    for start in range(0, count, block):
        own, rest = x[..., start : start + block, :], x[..., start + block :, :]
        total = total + kernel(own, own, bandwidth).sum((-2, -1)) - own.shape[-2]
        if rest.shape[-2]:
            total = total + 2 * mean_kernel(own, rest, bandwidth, block).sum(-1) * rest.shape[-2]
    return total / (count * (count - 1))


def mmd2_unbiased(p: Tensor, q: Tensor, bandwidth: Tensor | float) -> Tensor:
    """Unbiased MMD^2 between (n, d) and (m, d) signatures."""
    cross = mean_kernel(p, q, bandwidth).mean(-1)
    return self_mean(p, bandwidth) + self_mean(q, bandwidth) - 2 * cross


def criterion(p: Tensor, q: Tensor, bandwidth: Tensor, regulariser: float = 1e-3) -> Tensor:
    """J = MMD_u^2 / sqrt(var + lambda), the regularised test power that the signatures are trained to maximise.

    With h(i, j) = k(p_i, p_j) + k(q_i, q_j) - k(p_i, q_j) - k(p_j, q_i), MMD_u^2 is the mean of h over i != j
    and var = 4 (E_i[(E_j h)^2] - (E_ij h)^2).

    Args:
        p: Signatures of real patches, (n, d).
        q: As many of generated patches.
        bandwidth: s.
        regulariser: lambda.
    """
    cross = kernel(p, q, bandwidth)
    h = kernel(p, p, bandwidth) + kernel(q, q, bandwidth) - cross - cross.T
    count = len(p)
    mmd2 = (h.sum() - h.diagonal().sum()) / (count * (count - 1))
    rows = h.mean(1)
    variance = 4 * (rows.square().mean() - rows.mean().square())
    return mmd2 / torch.sqrt(variance.clamp_min(0) + regulariser)


class SignatureHead(nn.Module):
    """phi, the kernel's bandwidth and the bank of real signatures.

    Args:
        inputs: Width of a token.
        hidden: Widths of phi's hidden layers.
        dim: d, width of a signature.
        bank: N, signatures of real patches.
    """

    bank: Tensor
    bank_term: Tensor

    def __init__(self, inputs: int, hidden: Sequence[int], dim: int, bank: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.GELU()]
            inputs = width
        layers.append(nn.Linear(inputs, dim))
        self.phi = nn.Sequential(*layers)
        self.log_bandwidth = nn.Parameter(torch.tensor(math.log(dim) / 2))
        self.register_buffer("bank", torch.zeros(bank, dim))
        self.register_buffer("bank_term", torch.zeros(()))

    @property
    def bandwidth(self) -> Tensor:
        """The kernel's s, above 0."""
        return self.log_bandwidth.exp()

    def set_bank(self, signatures: Tensor) -> None:
        """Store real signatures (N, d) and the term of MMD^2 that no image changes, mean k(r, r'), r != r'."""
        self.bank = signatures
        self.bank_term = self_mean(signatures, self.bandwidth).detach()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, inputs), n > 1, of B images to MMD^2 against the bank, (B,); about 0 to 2."""
        # One image at a time: a block of its kernel matrix stays in the cache, that of a batch would not.
        return torch.stack([self._mmd2(x) for x in self.phi(tokens)])

    def _mmd2(self, x: Tensor) -> Tensor:
        cross = mean_kernel(x, self.bank, self.bandwidth).mean()
        return self_mean(x, self.bandwidth) - 2 * cross + self.bank_term

    def witness(self, x: Tensor, image: Tensor) -> Tensor:
        """Evidence of each signature: mean_x k(x_i, x) - mean_r k(x_i, r); higher where a patch is unlike reals.

        Args:
            x: Signatures to judge, (n, d).
            image: Signatures that stand for the whole image, (m, d).

        Returns:
            (n,), in (-1, 1).
        """
        return mean_kernel(x, image, self.bandwidth) - mean_kernel(x, self.bank, self.bandwidth)
