"""Causal self-attention for training: `scaled_dot_product_attention`, and a faster CPU twin.

On CPUs the backward pass of the built-in kernel is slow at short lengths (measured: five times its
forward pass). The twin keeps the attention weights (B * heads * T^2 numbers, small here) and is a
handful of batched matrix products. Queries are cut in blocks, so that most of the masked half of
the score matrix is never computed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# queries per block: measured best at T = 270 ... 320
BLOCK = {torch.float32: 64, torch.bfloat16: 160}
LONGEST = 1024  # above, the kept weights would outgrow the caches


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
    """

    @staticmethod
    def forward(ctx, qkv: Tensor) -> Tensor:
        B, T, _, heads, d = qkv.shape
        packed = qkv.permute(2, 0, 3, 1, 4).reshape(3, B * heads, T, d)  # contiguous copy
        q, k, v = packed
        y, weights = torch.empty_like(q), []
        for start, stop in blocks(T, q.dtype):
            future = torch.full((stop - start, stop), float("-inf"), dtype=q.dtype).triu(start + 1)
            scores = torch.baddbmm(future, q[:, start:stop], k[:, :stop].mT, alpha=d**-0.5)
            P = torch.softmax(scores, -1)  # (B * heads, stop - start, stop)
            torch.bmm(P, v[:, :stop], out=y[:, start:stop])
            weights.append(P)
        ctx.save_for_backward(packed, *weights)
        return y.view(B, heads, T, d).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:
        packed, *weights = ctx.saved_tensors
        q, k, v = packed
        B, T, heads, d = g.shape
        g = g.transpose(1, 2).reshape(B * heads, T, d)
        grad = torch.empty_like(packed)
        dq, dk, dv = grad
        for (start, stop), P in reversed(list(zip(blocks(T, q.dtype), weights, strict=True))):
            keys, part = slice(0, stop), g[:, start:stop]
            dP = torch.bmm(part, v[:, keys].mT)
            dS = torch._softmax_backward_data(dP, P, -1, P.dtype)
            torch.bmm(dS, k[:, keys], out=dq[:, start:stop])
            beta = 0 if stop == T else 1  # the last block reaches all keys and comes first
            queries = q[:, start:stop]
            dv[:, keys].baddbmm_(P.mT, part, beta=beta)
            dk[:, keys].baddbmm_(dS.mT, queries, beta=beta)
        grad[:2] *= d**-0.5
        return grad.view(3, B, heads, T, d).permute(1, 3, 0, 2, 4)
