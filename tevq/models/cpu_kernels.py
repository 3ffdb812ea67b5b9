"""Group norm, attention and embedding for training on CPUs, with backward passes of our own.

PyTorch's are slow for channels_last maps, and for a few hundred positions. Measured against them
(preset laptop, a core with AMX, torch 2.14): Stage-1 steps are 1.31 times as fast in bfloat16 and
0.94 in float32, Stage-2 steps 1.5 and 1.06 times.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPSILON = 1e-6  # of the group norm, as official
FEW_PIXELS = 256  # up to so many, PyTorch's forward pass is slow for channels_last
# queries per block of the attention: measured best at T = 270 ... 320
BLOCK = {torch.float32: 64, torch.bfloat16: 160}
LONGEST = 1024  # longer sequences: the kept attention weights would outgrow the caches


class GroupNorm(nn.GroupNorm):
    """Group norm, optionally followed by SiLU; channels >= 4.

    As many groups of equal size as leave each at least 4 channels, at most 32.
    """

    def __init__(self, channels: int, silu: bool = False):
        groups = max(n for n in range(1, min(32, channels // 4) + 1) if channels % n == 0)
        super().__init__(groups, channels, eps=EPSILON)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same shape and type; statistics are float32 whatever the type."""
        if x.device.type == "cpu":
            frozen = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
            if frozen and x.dtype is torch.float32 and _channels_last(x):
                return self.exact(x)
            return _GroupNormSiLU.apply(x, self.weight, self.bias, self.num_groups, self.silu)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            y = F.group_norm(x, self.num_groups, weight, bias, self.eps)
        return F.silu(y) if self.silu else y

    def exact(self, x: Tensor) -> Tensor:
        """For frozen networks: PyTorch's kernel for channels_last is off by 3e-4 in large maps."""
        (B, C, H, W), groups = x.shape, self.num_groups
        sums = torch.cat((x.sum((2, 3)), (x * x).sum((2, 3)))).view(2, B, groups, -1)
        mean, square = sums.mean(3, keepdim=True) / (H * W)  # (B, groups, 1)
        scale = (square - mean**2).clamp(0).add(EPSILON).rsqrt() * self.weight.view(groups, -1)
        shift = self.bias.view(groups, -1) - mean * scale
        y = _affine(x, scale.view(B, C), shift.view(B, C))
        return F.silu(y, inplace=True) if self.silu else y


class _GroupNormSiLU(torch.autograd.Function):
    """y = silu(norm(x) * weight + bias), with the gradient as dx = a dy + b x + c.

    a, b and c are numbers per image and channel: two reductions and two multiply-adds.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, groups, silu):
        B, C, H, W = x.shape
        if H * W <= FEW_PIXELS and _channels_last(x):
            h, mean, rstd = _small_group_norm(x, weight, bias, groups)
        else:
            h, mean, rstd = torch.native_group_norm(
                x, weight.to(x.dtype), bias.to(x.dtype), B, C, H * W, groups, EPSILON)
        ctx.save_for_backward(x, h, mean, rstd, weight)
        ctx.groups, ctx.silu = groups, silu
        return F.silu(h) if silu else h

    @staticmethod
    def backward(ctx, gradient):
        x, h, mean, rstd, weight = ctx.saved_tensors
        B, C, H, W = x.shape
        per_group = (B, ctx.groups, C // ctx.groups)
        dy = gradient.contiguous(memory_format=torch.channels_last if _channels_last(x) else
                                 torch.contiguous_format)
        dy = torch.ops.aten.silu_backward(dy, h) if ctx.silu else dy
        mean, rstd = mean.float()[..., None], rstd.float()[..., None]  # (B, groups, 1)
        sum_dy = dy.sum((2, 3)).float().view(per_group)
        sum_dyx = (dy * x).sum((2, 3)).float().view(per_group)
        d_weight = ((sum_dyx - mean * sum_dy) * rstd).sum(0).view(C)
        d_bias = sum_dy.sum(0).view(C)
        w, n = weight.float().view(1, *per_group[1:]), H * W * per_group[2]
        s1, s2 = (w * sum_dy).sum(2, keepdim=True), (w * sum_dyx).sum(2, keepdim=True)
        a = (w * rstd).expand(per_group)
        b = rstd**3 * (mean * s1 - s2) / n  # (B, groups, 1)
        c = -b * mean - rstd * s1 / n
        a, b, c = (t.expand(per_group).reshape(B, C) for t in (a, b, c))
        return _affine(dy, a, _affine(x, b, c)), d_weight, d_bias, None, None


def _small_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int):
    """Group norm of a small channels_last map x (B, C, H, W), as `native_group_norm`.

    Returns the output, and mean and 1 / deviation (B, groups) in float32.
    """
    B, C, H, W = x.shape
    per_group = (B, groups, C // groups)

    def mean_of(t: Tensor) -> Tensor:  # (B, groups, 1)
        return t.sum((2, 3)).float().view(per_group).sum(2, keepdim=True) / (H * W * per_group[2])

    def spread(t: Tensor) -> Tensor:  # (B, groups, 1) -> (B, C)
        return t.expand(per_group).reshape(B, C)

    mean = mean_of(x)
    centred = _affine(x, torch.ones(B, C), -spread(mean))
    rest = mean_of(centred)  # not zero, because the mean was rounded
    rstd = (mean_of(centred * centred) - rest.square() + EPSILON).rsqrt()
    scale = spread(rstd) * weight
    h = _affine(centred, scale, bias - spread(rest) * scale)
    return h, (mean + rest)[..., 0], rstd[..., 0]


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift for x (B, C, H, W), in its type; scale (B, C), shift (B, C) or as x.

    For channels_last the scale is repeated along a row of pixels: long inner loops run several
    times faster than loops over a few channels.
    """
    B, C, H, W = x.shape
    scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    if not _channels_last(x):
        shift = shift if shift.dim() == 4 else shift[..., None, None]
        return torch.addcmul(shift, x, scale[..., None, None])

    def rows(t: Tensor) -> Tensor:  # (B, H, W C), or (B, 1, W C) of one value per channel
        return (t.permute(0, 2, 3, 1).reshape(B, H, W * C) if t.dim() == 4 else
                t.repeat(1, W).view(B, 1, W * C))

    y = torch.addcmul(rows(shift), rows(x), rows(scale))
    return y.view(B, H, W, C).permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> bool:
    """Whether x lies in memory as channels_last, and not as both layouts."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


class RowSums(torch.autograd.Function):
    """Sums of n rows of a table each: index (S, n), table (rows, dim) -> (S, dim).

    PyTorch's own backward pass takes twice as long.
    """

    @staticmethod
    def forward(ctx, index: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return F.embedding_bag(index, table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        table = g.new_zeros(ctx.rows, g.shape[1])
        for column in ctx.saved_tensors[0].unbind(1):
            table.index_add_(0, column, g)
        return None, table


def causal_attention(qkv: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim), past positions only) v.

    qkv (B, T, 3, heads, head_dim) -> (B, T, heads, head_dim).
    """
    if qkv.device.type == "cpu" and torch.is_grad_enabled() and qkv.shape[1] <= LONGEST:
        return BlockAttention.apply(qkv)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, T, head_dim) each
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def blocks(T: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    """First query of each block, and the one after its last."""
    size = BLOCK.get(dtype, 64)
    return [(start, min(start + size, T)) for start in range(0, T, size)]


class BlockAttention(torch.autograd.Function):
    """`causal_attention` with its gradient written out; g is dL/d(output).

    P = softmax(S), S = q k^T / sqrt(d), y = P v
    dv = P^T g, dP = g v^T, dS = P * (dP - sum(P * dP)), dq = dS k / sqrt(d), dk = dS^T q / sqrt(d)

    The weights P (B * heads * T^2 numbers, few here) are kept for the backward pass. Queries are
    cut in blocks, so that most of the masked half of S is never computed.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor) -> Tensor:
        B, T, _, heads, d = qkv.shape
        q, k, v = qkv[:, :, 0], _by_head(qkv[:, :, 1]), _by_head(qkv[:, :, 2])
        y, kept = q.new_empty(q.shape), []
        for start, stop in blocks(T, q.dtype):
            future = torch.full((stop - start, stop), float("-inf"), dtype=q.dtype).triu(start + 1)
            queries, keys, values = (t.contiguous() for t in (
                _by_head(q[:, start:stop]), k[:, :stop], v[:, :stop]))
            scores = torch.baddbmm(future, queries, keys.mT, alpha=d**-0.5)
            P = torch.softmax(scores, -1)  # (B * heads, stop - start, stop)
            y[:, start:stop] = torch.bmm(P, values).view(B, heads, -1, d).transpose(1, 2)
            kept.append((queries, keys, values, P))
        ctx.save_for_backward(*sum(kept, ()))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:
        B, T, heads, d = g.shape
        saved = (ctx.saved_tensors[i::4] for i in range(4))
        parts = list(zip(blocks(T, g.dtype), *saved, strict=True))
        grad, scale = g.new_empty(B, T, 3, heads, d), d**-0.5
        dk, dv = dkv = g.new_empty(2, B * heads, T, d)
        for (start, stop), queries, keys, values, P in reversed(parts):
            part, beta = _by_head(g[:, start:stop]), 0 if stop == T else 1
            dS = torch._softmax_backward_data(torch.bmm(part, values.mT), P, -1, P.dtype)
            dq = torch.baddbmm(queries, dS, keys, beta=0, alpha=scale)
            # the last block reaches all keys and comes first
            dv[:, :stop].baddbmm_(P.mT, part, beta=beta)
            dk[:, :stop].baddbmm_(dS.mT, queries, beta=beta, alpha=scale)
            grad[:, start:stop, 0] = dq.view(B, heads, -1, d).transpose(1, 2)
        grad[:, :, 1:] = dkv.view(2, B, heads, T, d).permute(1, 3, 0, 2, 4)
        return grad


def _by_head(x: Tensor) -> Tensor:
    """(B, S, heads, d) -> (B * heads, S, d)."""
    return x.transpose(1, 2).flatten(0, 1)
