"""Vector quantizer (equation 3) and the orthogonality of its codebook (equation 5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Quantized(NamedTuple):
    """What the quantizer returns."""

    features: torch.Tensor  # (B, D, h, w): the chosen codes, gradients passed straight through
    codes: torch.Tensor  # (B, h, w) int64 in [0, K)
    codebook_loss: torch.Tensor  # scalar; pulls codes to features
    commitment_loss: torch.Tensor  # scalar; pulls features to codes


def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Equation 3: index of the closest row of codebook (K, D) for each of vectors (N, D), by L2.

    |v|^2 is the same for all codes and left out. Computed in float32: in bfloat16 near ties flip.
    """
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        codebook = codebook.float()
        half_norms = 0.5 * codebook.square().sum(1)
        return torch.addmm(half_norms, vectors.float(), codebook.T, alpha=-1).argmin(1)


def orthogonality(codebook: torch.Tensor) -> torch.Tensor:
    """Equation 5 without lambda: |l2(e)^T l2(e) - I|_F^2 / K^2 over all K codes (K, D)."""
    K = codebook.shape[0]
    with torch.autocast(codebook.device.type, enabled=False):
        unit = F.normalize(codebook.float(), dim=1)
        gram = unit @ unit.T
        return (gram - torch.eye(K, device=gram.device)).square().sum() / K**2


class Quantizer(nn.Module):
    """Codebook of K vectors trained by gradients (no moving averages, no revival), as official.

    Starts uniform in (-1/K, 1/K).
    """

    def __init__(self, K: int, D: int):
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(K, D).uniform_(-1 / K, 1 / K))

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, D, h, w) -> codes (B, h, w) alone."""
        vectors = z.permute(0, 2, 3, 1).flatten(0, 2)
        return nearest_codes(vectors, self.codebook).view(z.shape[0], *z.shape[2:])

    def forward(self, z: torch.Tensor) -> Quantized:
        """z (B, D, h, w) -> Quantized. Both losses are means over all B D h w elements.

        Raises ValueError if D does not fit the codebook.
        """
        B, D, h, w = z.shape
        if D != self.codebook.shape[1]:
            raise ValueError(f"features have {D} channels, the codebook {self.codebook.shape[1]}")
        z = z.float()
        vectors = z.permute(0, 2, 3, 1).reshape(-1, D)  # (B h w, D)
        codes = nearest_codes(vectors, self.codebook)
        chosen = F.embedding(codes, self.codebook)
        codebook_loss = F.mse_loss(chosen, vectors.detach())
        commitment_loss = F.mse_loss(vectors, chosen.detach())
        through = vectors + (chosen - vectors).detach()
        features = through.view(B, h, w, D).permute(0, 3, 1, 2)  # (B, D, h, w), channels last
        return Quantized(features, codes.view(B, h, w), codebook_loss, commitment_loss)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (B, h, w) -> their vectors (B, D, h, w)."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)


def codebook_health(codebook: torch.Tensor, counts: torch.Tensor) -> dict[str, float]:
    """Use of the codes and shape of the codebook.

    `counts` (K,): how often each code was chosen. `codes_used` counts codes chosen at least once,
    `perplexity` is exp of the entropy of their frequencies, norms are Euclidean, `max_cosine` is
    the largest |cosine| between two codes and `max_cosine_used` between two codes in use.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    norms = codebook.detach().float().norm(dim=1)
    used = counts > 0
    return {
        "codes_used": int(used.sum()),
        "perplexity": float(entropy.exp()),
        "norm_mean": float(norms.mean()),
        "norm_used": float(norms[used].mean()),
        "norm_max": float(norms.max()),
        "max_cosine": _largest_cosine(codebook),
        "max_cosine_used": _largest_cosine(codebook[used]),
    }


def _largest_cosine(vectors: torch.Tensor) -> float:
    if len(vectors) < 2:
        return 0.0
    unit = F.normalize(vectors.detach().float(), dim=1)
    return float((unit @ unit.T).fill_diagonal_(0).abs().max())
