"""Muon: its updates are orthogonal, and it descends."""

import pytest
import torch

from tevq.models.transformer import Transformer
from tevq.train.muon import Muon, block_matrices, orthogonalise


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 96, 32), (2, 32, 128)])
def test_updates_keep_the_singular_vectors_and_level_the_singular_values(shape):
    torch.manual_seed(0)
    G = torch.randn(shape)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    update = orthogonalise(G)
    values = torch.linalg.svdvals(update)
    assert update.shape == G.shape
    assert 0.4 < values.min() and values.max() < 1.3  # the smallest of a random square are slow
    aligned = (update * (U @ Vh)).sum() / (update.norm() * (U @ Vh).norm())
    assert aligned > 0.97


def test_step_size_does_not_depend_on_the_gradient_scale():
    moves = []
    for scale in (1.0, 1e-3):
        p = torch.nn.Parameter(torch.zeros(16, 8))
        p.grad = scale * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
        Muon([p], lr=0.1).step()
        moves.append(p.detach())
    torch.testing.assert_close(moves[0], moves[1], rtol=0.05, atol=2e-3)


def test_matrices_of_the_blocks_and_nothing_else():
    model = Transformer(11, 7, 6, 4, dim=32, depth=2, head_dim=16)
    matrices, rest = block_matrices(model)
    assert len(matrices) == 2 * 4 and all(p.ndim == 2 for p in matrices)
    assert len(matrices) + len(rest) == len(list(model.parameters()))
    assert any(p is model.image_head.weight for p in rest)


def test_it_descends_and_resumes_from_its_state():
    torch.manual_seed(0)
    target, runs = torch.randn(8, 8), []
    for stop in (None, 5):
        p = torch.nn.Parameter(torch.zeros(8, 8))
        optimiser = Muon([p], lr=0.05)
        for step in range(10):
            if step == stop:
                state, optimiser = optimiser.state_dict(), Muon([p], lr=0.05)
                optimiser.load_state_dict(state)
            p.grad = p.detach() - target
            optimiser.step()
        runs.append(p.detach())
    assert torch.equal(*runs)
    assert (runs[0] - target).norm() < 0.9 * target.norm()
