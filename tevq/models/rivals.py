"""Rivals and controls of orthogonal codes: quantizers, a normalisation, a downsampler.

Which arm of results/plan.md uses what stands in `presets.VARIANTS`; `presets.check_arm` refuses
sizes that do not fit. Letters: K codes of D channels, N vectors, d channels after a projection.
Formulas are written from the papers that are named.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tevq.models.quantizer import QUANTIZERS, Quantized, Quantizer, nearest_codes
from tevq.models.vqgan import DOWNSAMPLERS, NORMALIZATIONS, Conv

ENTROPY = 0.1  # weight of the entropy term of LFQ (Yu et al. 2024)


class Cosine(Quantizer):
    """Features and codes on one sphere, so lengths mean nothing (ViT-VQGAN, Yu et al. 2022).

    e = r e'/|e'|, likewise z, with r = sqrt(D): a channel has mean square 1, and both losses have
    the scale that they have without the sphere. The nearest code is that of the largest cosine.
    """

    def table(self) -> Tensor:
        return self.on_sphere(self.codebook)

    @staticmethod
    def on_sphere(x: Tensor, dim: int = -1) -> Tensor:
        """x with length sqrt(D) along `dim`, float32."""
        return F.normalize(x.float(), dim=dim) * math.sqrt(x.shape[dim])

    def forward(self, z: Tensor) -> Quantized:
        return super().forward(self.on_sphere(z, 1))

    def nearest(self, z: Tensor) -> Tensor:
        return super().nearest(self.on_sphere(z, 1))

    def init_codes(self, vectors: Tensor, seed: int) -> None:
        super().init_codes(self.on_sphere(vectors), seed)


class Orthonormal(Quantizer):
    """Fixed orthogonal codes of one length: e_i e_j = r^2 [i = j]. Only features learn.

    The directions are Q of the QR decomposition of a Gaussian (D, K), drawn from torch's seeded
    generator; r is the mean length of the encoder outputs at the start of the codes (1 before).
    """

    def __init__(self, K: int, D: int):
        super().__init__(K, D)
        del self.codebook
        self.register_buffer("codebook", torch.linalg.qr(torch.randn(D, K)).Q.T.contiguous())

    def init_codes(self, vectors: Tensor, seed: int) -> None:
        self.codebook *= vectors.norm(dim=1).mean()


class SimVQ(Quantizer):
    """Codes C W with C (K, D) frozen and W (D, D) learned, so every code moves (Zhu et al. 2024).

    The start is that of `Quantizer`: C at the k-means centres, W the identity.
    """

    def __init__(self, K: int, D: int):
        super().__init__(K, D)
        self.codebook.requires_grad_(False)
        self.map = nn.Parameter(torch.eye(D))

    def table(self) -> Tensor:
        with torch.autocast(self.map.device.type, enabled=False):
            return self.codebook @ self.map


class Merged(Quantizer):
    """The codes of a trained quantizer joined to `merged_to` groups, whose names are the new codes.

    A feature gets the group of its nearest old code. So nothing but the number of codes changes.
    The vector of a group is learned; it starts at the mean of the features in the group.
    """

    needs = ("merged_to",)

    def __init__(self, K: int, D: int, merged_to: int):
        super().__init__(merged_to, D)
        self.register_buffer("old", torch.zeros(K, D))
        self.register_buffer("group", torch.zeros(K, dtype=torch.long))

    def choose(self, vectors: Tensor) -> Tensor:
        return self.group[nearest_codes(vectors, self.old)]

    def init_codes(self, vectors: Tensor, seed: int) -> None:
        """Joins the codes that vectors (N, D) use; each other one goes to its nearest of these."""
        used = nearest_codes(vectors, self.old).unique()
        joined = merge_codes(self.old[used], min(self.K, len(used))).to(used.device)
        self.group.copy_(joined[nearest_codes(self.old, self.old[used])])
        codes = self.choose(vectors)
        for code in codes.unique():
            self.codebook.data[code] = vectors[codes == code].mean(0)


class Projected(nn.Module):
    """A quantizer of d channels between two linear maps, D -> d -> D, started by the d principal
    directions of the features, each scaled to a standard deviation of 1."""

    def __init__(self, D: int, points: Tensor):
        super().__init__()
        self.K, d = points.shape
        self.into, self.out = nn.Linear(D, d), nn.Linear(d, D)
        self.register_buffer("points", points, persistent=False)  # (K, d): what codes stand for

    def init_codes(self, vectors: Tensor, seed: int) -> None:
        mean, (values, directions) = vectors.mean(0), torch.linalg.eigh(vectors.T.cov())
        kept = directions[:, -self.points.shape[1]:].T  # (d, D), those of the largest values
        scale = values[-len(kept):].clamp(min=1e-6).sqrt()[:, None]
        for parameter, start in ((self.into.weight, kept / scale), (self.out.bias, mean),
                                 (self.into.bias, -(kept / scale) @ mean),
                                 (self.out.weight, (kept * scale).T)):
            parameter.data.copy_(start)

    def low(self, z: Tensor) -> Tensor:
        """z (B, D, h, w) -> vectors (B h w, d) before rounding, float32."""
        with torch.autocast(z.device.type, enabled=False):
            return self.bound(self.into(z.float().permute(0, 2, 3, 1).flatten(0, 2)))

    def forward(self, z: Tensor) -> Quantized:
        """z (B, D, h, w) -> Quantized; gradients pass straight through the rounding."""
        low, (B, _, h, w) = self.low(z), z.shape
        codes = self.index(low)
        chosen = self.points[codes]
        with torch.autocast(z.device.type, enabled=False):
            y = self.out(low + (chosen - low).detach())
        features = y.view(B, h, w, -1).permute(0, 3, 1, 2)
        return Quantized(features, codes.view(B, h, w), *self.losses(low, chosen))

    def nearest(self, z: Tensor) -> Tensor:
        return self.index(self.low(z)).view(z.shape[0], *z.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.table()).permute(0, 3, 1, 2)

    def table(self) -> Tensor:
        with torch.autocast(self.points.device.type, enabled=False):
            return self.out(self.points)


class FSQ(Projected):
    """Finite scalar quantization (Mentzer et al. 2023): channel i is rounded to one of L_i levels.

    tanh bounds a channel to the L whole numbers from -floor(L/2); it is rounded, and divided by
    floor(L/2). An even L moves tanh by half a step, so that 0 stays 0. K is the product of the
    levels; a code is the number whose digits are the levels, the first one fastest.
    """

    needs = ("levels",)

    def __init__(self, K: int, D: int, levels: tuple):
        digits = [torch.arange(L) - L // 2 for L in levels]
        grid = torch.cartesian_prod(*reversed(digits)).view(-1, len(levels)).flip(1)
        half = torch.tensor([L // 2 for L in levels])
        super().__init__(D, grid / half)
        for name, values in (
                ("halves", half), ("levels", torch.tensor(levels)),
                ("place", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]))):
            self.register_buffer(name, values, persistent=False)

    def bound(self, x: Tensor) -> Tensor:
        """x (N, d) -> in units of half a range, so that whole steps are levels."""
        span, offset = (self.levels - 1) * 1.001 / 2, (self.levels + 1) % 2 / 2
        return (torch.tanh(x + torch.atanh(offset / span)) * span - offset) / self.halves

    def index(self, low: Tensor) -> Tensor:
        return (((low * self.halves).round().long() + self.halves) * self.place).sum(1)

    def losses(self, low: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """None is needed."""
        return low.new_zeros(()), low.new_zeros(())


class LFQ(Projected):
    """Lookup-free quantization (MAGVIT-v2, Yu et al. 2024): log2 K channels, each -1 or 1.

    Its entropy term stands for the codebook loss: 0.1 (E H(q) - H(E q)), where q are softmax(-|z -
    c|^2) over all codes c. The first part makes single choices sure, the second one all codes used.
    """

    def __init__(self, K: int, D: int):
        bits = K.bit_length() - 1
        super().__init__(D, (torch.arange(K)[:, None] >> torch.arange(bits) & 1) * 2.0 - 1)

    def bound(self, x: Tensor) -> Tensor:
        return x

    def index(self, low: Tensor) -> Tensor:
        return ((low > 0).long() << torch.arange(low.shape[1], device=low.device)).sum(1)

    def losses(self, low: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The entropy term in nats, and the commitment loss in the d channels."""
        with torch.autocast(low.device.type, enabled=False):
            # |c|^2 and |z|^2 are the same for all codes
            log_q = (2 * low @ self.points.T).log_softmax(1)  # (N, K)
        mean = log_q.exp().mean(0)
        single = -(log_q.exp() * log_q).sum(1).mean()
        together = -(mean * (mean + 1e-12).log()).sum()
        return ENTROPY * (single - together), F.mse_loss(low, chosen)


QUANTIZERS |= {"cosine": Cosine, "orthonormal": Orthonormal, "simvq": SimVQ, "merged": Merged,
               "fsq": FSQ, "lfq": LFQ}


def merge_codes(codebook: Tensor, groups: int) -> Tensor:
    """Group (K,) of every code: the nearest two are joined (Ward) until so many groups are left."""
    from sklearn.cluster import AgglomerativeClustering

    ward = AgglomerativeClustering(groups, linkage="ward")
    return torch.tensor(ward.fit_predict(codebook.detach().float().cpu().numpy()))


class PositionNorm(nn.Module):
    """Normalised over the channels of one position, so that no position depends on another.

    (x - mean) / sqrt(variance + 1e-6), then a gain and a bias for each channel, optionally SiLU.
    """

    def __init__(self, channels: int, silu: bool = False):
        super().__init__()
        self.silu, self.norm = silu, nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same shape and type; statistics are float32 whatever the type."""
        y = self.norm(x.permute(0, 2, 3, 1).float()).permute(0, 3, 1, 2).to(x.dtype)
        return F.silu(y) if self.silu else y


class AdaptivePolyphase(nn.Module):
    """APS (Chaman & Dokmanic 2021): 3x3 convolution, then of the four grids of every second pixel
    the one with the largest Euclidean norm.

    With circular padding a shift of the input by any number of pixels shifts the output, too.
    """

    def __init__(self, channels: int, padding: str):
        super().__init__()
        self.conv = Conv(channels, channels, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        y = self.conv(x)
        grids = torch.stack([y[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        best = grids.float().square().sum((2, 3, 4)).argmax(1)  # (B,)
        return grids[torch.arange(len(x), device=x.device), best]


NORMALIZATIONS["position"] = PositionNorm
DOWNSAMPLERS["adaptive_polyphase"] = AdaptivePolyphase
