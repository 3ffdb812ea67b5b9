"""The vector quantizer (equation 3) and the orthogonality of its codebook (equation 5).

Setting `stage1.quantizer` names an entry of `QUANTIZERS`. A new quantizer is one entry there: a
module made from K, the number of codes, and D, the channels of a feature, that has

    K                          the number of codes
    quantizer(z) -> Quantized  what training needs of features z (B, D, h, w)
    nearest(z)                 codes (B, h, w) of features
    lookup(codes)              features (B, D, h, w) of codes
    table()                    the features of all codes (K, D), for equation 5 and for statistics
    init_codes(vectors, seed)  starts from encoder outputs (N, D); nothing if codes are not learned
    needs                      optional: names of further settings that it is made from
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Quantized(NamedTuple):
    """What a quantizer returns."""

    features: Tensor  # (B, D, h, w): the chosen codes, gradients passed straight through
    codes: Tensor  # (B, h, w) int64 in [0, K)
    codebook_loss: Tensor  # scalar; pulls codes to features
    commitment_loss: Tensor  # scalar; pulls features to codes


class Quantizer(nn.Module):
    """Codebook of K vectors trained by gradients (no moving averages, no revival), as official.

    Starts uniform in (-1/K, 1/K).
    """

    def __init__(self, K: int, D: int):
        super().__init__()
        self.K = K
        self.codebook = nn.Parameter(torch.empty(K, D).uniform_(-1 / K, 1 / K))

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) -> Quantized. Both losses are means over all B D h w elements.

        Raises ValueError if D does not fit the codebook.
        """
        B, D, h, w = z.shape
        if D != self.codebook.shape[1]:
            raise ValueError(f"features have {D} channels, the codebook {self.codebook.shape[1]}")
        z = z.float()
        vectors = z.permute(0, 2, 3, 1).reshape(-1, D)  # (B h w, D)
        codes = self.choose(vectors)
        chosen = F.embedding(codes, self.table())
        codebook_loss = F.mse_loss(chosen, vectors.detach())
        commitment_loss = F.mse_loss(vectors, chosen.detach())
        through = vectors + (chosen - vectors).detach()
        features = through.view(B, h, w, D).permute(0, 3, 1, 2)  # (B, D, h, w), channels last
        return Quantized(features, codes.view(B, h, w), codebook_loss, commitment_loss)

    def nearest(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> codes (B, h, w) alone."""
        vectors = z.permute(0, 2, 3, 1).flatten(0, 2)
        return self.choose(vectors).view(z.shape[0], *z.shape[2:])

    def choose(self, vectors: Tensor) -> Tensor:
        """Codes (N,) of vectors (N, D)."""
        return nearest_codes(vectors, self.table())

    def lookup(self, codes: Tensor) -> Tensor:
        """codes (B, h, w) -> their vectors (B, D, h, w)."""
        return F.embedding(codes, self.table()).permute(0, 3, 1, 2)

    def table(self) -> Tensor:
        """The codebook (K, D)."""
        return self.codebook

    def init_codes(self, vectors: Tensor, seed: int) -> None:
        """Puts the codes at the k-means centres of encoder outputs (N, D), N >= K."""
        self.codebook.data.copy_(kmeans(vectors, self.K, seed))


QUANTIZERS = {"vq": Quantizer}


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Equation 3: index of the closest row of codebook (K, D) for each of vectors (N, D), by L2.

    |v|^2 is the same for all codes and left out. Computed in float32: in bfloat16 near ties flip.
    """
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        codebook = codebook.float()
        half_norms = 0.5 * codebook.square().sum(1)
        return torch.addmm(half_norms, vectors.float(), codebook.T, alpha=-1).argmin(1)


def kmeans(vectors: Tensor, K: int, seed: int) -> Tensor:
    """K centres (K, D) of vectors (N, D): k-means++ and a few Lloyd rounds (scikit-learn).

    One thread, so that the result does not depend on the machine's load.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        model = KMeans(K, init="k-means++", n_init=1, max_iter=10, random_state=seed)
        centres = model.fit(vectors.cpu().numpy()).cluster_centers_
    return torch.from_numpy(centres).to(vectors)


def orthogonality(codebook: Tensor) -> Tensor:
    """Equation 5 without lambda: |l2(e)^T l2(e) - I|_F^2 / K^2 over all K codes (K, D)."""
    K = codebook.shape[0]
    with torch.autocast(codebook.device.type, enabled=False):
        unit = F.normalize(codebook.float(), dim=1)
        gram = unit @ unit.T
        return (gram - torch.eye(K, device=gram.device)).square().sum() / K**2


def codebook_health(codebook: Tensor, counts: Tensor) -> dict[str, float]:
    """Use of the codes (K, D) and their shape; `counts` (K,): how often each code was chosen.

    `codes_used` counts codes chosen at least once, `perplexity` is exp of the entropy of their
    frequencies, norms are Euclidean, `max_cosine` is the largest |cosine| between two codes and
    `max_cosine_used` between two codes in use.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    norms = codebook.detach().float().norm(dim=1)
    used = counts > 0
    return {
        "codes_used": int(used.sum()), "perplexity": float(entropy.exp()),
        "norm_mean": float(norms.mean()), "norm_used": float(norms[used].mean()),
        "norm_max": float(norms.max()), "max_cosine": _largest_cosine(codebook),
        "max_cosine_used": _largest_cosine(codebook[used])}


def _largest_cosine(vectors: Tensor) -> float:
    if len(vectors) < 2:
        return 0.0
    unit = F.normalize(vectors.detach().float(), dim=1)
    return float((unit @ unit.T).fill_diagonal_(0).abs().max())
