"""Muon: momentum whose matrix updates are made orthogonal (K. Jordan, 2024).

Every singular value of an update becomes about one, so rare directions are learned as fast as
common ones: the generator learns from fewer sequences than with Adam. It is for the weight
matrices inside the blocks; embeddings, heads and gains stay with Adam. Our own, because
`torch.optim.Muon` forces bfloat16, loops over matrices and reads the learning rate from the GPU.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

STEPS = 5  # Newton-Schulz iterations
QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at zero; singular values end in about [0.7, 1.2]


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, rows, columns) -> same shape, each U V^T of its U S V^T, approximately.

    Computed in `dtype`; bfloat16 is as good (Jordan), and slow where the hardware lacks it.
    """
    a, b, c = QUINTIC
    X = matrices.to(dtype)
    wide = X.shape[-2] <= X.shape[-1]
    X = X if wide else X.mT
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # largest singular value <= 1
    for _ in range(STEPS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return (X if wide else X.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for 2-D parameters, all of which must have gradients.

    Updates are scaled by sqrt(rows / columns) where that exceeds 1. `dtype` is that of the
    orthogonalisation. `lr` may be set to a tensor.
    """

    def __init__(self, parameters, lr: float = 0.01, momentum: float = 0.95,
                 dtype: torch.dtype = torch.float32):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)  # equal shapes are handled in one batched product
            for p in group["params"]:
                shapes[p.shape].append(p)
            for (rows, columns), same in shapes.items():
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                self._update(same, rate, 1 - group["momentum"])

    def _update(self, parameters: list[Tensor], rate: float | Tensor, mix: float) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["average"] = torch.zeros_like(p)
        averages = [self.state[p]["average"] for p in parameters]
        gradients = [p.grad for p in parameters]
        torch._foreach_lerp_(averages, gradients, mix)
        steps = torch.stack(torch._foreach_lerp(gradients, averages, 1 - mix))
        updates = orthogonalise(steps, self.dtype)
        if torch.is_tensor(rate):  # of a step in a CUDA graph
            torch._foreach_sub_(parameters, list((updates * rate).unbind()))
        else:
            torch._foreach_add_(parameters, list(updates.unbind()), alpha=-rate)


def block_matrices(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of a transformer in two lists: for Muon (2-D, inside `blocks`), for Adam."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in chosen]
