"""The transformer against slow second routes."""

import pytest
import torch
import torch.nn.functional as F

from tevq.config import SettingsError
from tevq.models.cpu_kernels import BLOCK, BlockAttention, blocks
from tevq.models.transformer import (
    DIRECTIONS,
    NeighbourEmbedding,
    Transformer,
    image_offsets,
    text_offsets,
)

V, K, L, GRID = 11, 7, 6, 4
N = GRID * GRID


def small(**changes) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(V, K, L, GRID, **{"dim": 32, "depth": 2, "head_dim": 16, **changes})
    for head in (model.text_head, model.image_head):  # zero at the start of training
        torch.nn.init.normal_(head.weight)
    return model


def batch(B: int = 3):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, V, (B, L), generator=generator)
    text[:, 0] = 1
    text[0, 4:] = 0  # PAD
    return text, torch.randint(0, K, (B, GRID, GRID), generator=generator)


@pytest.mark.parametrize("T", [5, 64, 2 * 64 + 7])
def test_block_attention_equals_masked_softmax_with_its_gradient(T):
    torch.manual_seed(0)
    qkv = torch.randn(2, T, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
    slow = (scores.softmax(-1) @ v).transpose(1, 2)
    fast = BlockAttention.apply(qkv)
    torch.testing.assert_close(fast, slow)
    g = torch.randn_like(slow)
    torch.testing.assert_close(
        torch.autograd.grad(fast, qkv, g)[0], torch.autograd.grad(slow, qkv, g)[0]
    )


@pytest.mark.parametrize("dtype", [*BLOCK, torch.float64])
def test_blocks_cover_all_positions_once(dtype):
    T = 2 * BLOCK.get(dtype, 64) + 3
    parts = blocks(T, dtype)
    assert len(parts) == 3 and [i for a, b in parts for i in range(a, b)] == list(range(T))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_training_attention_equals_evaluation_attention(direction):
    model, (text, codes) = small(), batch()
    trained = model(text, codes, direction)
    with torch.no_grad():  # the built-in kernel
        evaluated = model(text, codes, direction)
    for a, b in zip(trained, evaluated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neighbours", [0, 1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_cached_logits_equal_uncached(direction, neighbours):
    model, (text, codes) = small(neighbours=neighbours), batch()
    flat = codes.flatten(1)
    with torch.no_grad():
        text_logits, image_logits = model(text, codes, direction)
        cache = model.cache(len(text))
        if direction == "t2i":
            x = model.trunk(model.embed_text(text), cache)
            steps = [model.image_logits(x[:, -1])]
            for i in range(N - 1):
                x = model.trunk(model.embed_image(flat, i, i + 1), cache)
                steps.append(model.image_logits(x[:, -1]))
            expected = image_logits
        else:
            x = torch.cat((model.embed_image(flat), model.embed_text(text, 0, 1)), 1)
            steps = [model.text_logits(model.trunk(x, cache)[:, -1])]
            for i in range(1, L - 1):
                x = model.trunk(model.embed_text(text, i, i + 1), cache)
                steps.append(model.text_logits(x[:, -1]))
            expected = text_logits
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neighbours", [0, 1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_logit_sees_its_target_or_later(direction, neighbours):
    """Change token i: logits of tokens 0 ... i stay, some later logit moves."""
    model, (text, codes) = small(neighbours=neighbours), batch()

    def sequence_logits(text, codes):  # position j: the logits of token j, nan where not predicted
        with torch.no_grad():
            words, image = model(text, codes, direction)
        words = F.pad(words.sum(-1), (1, 0))
        image = F.pad(image.sum(-1), (N - image.shape[1], 0))
        return torch.cat((words, image) if direction == "t2i" else (image, words), 1)

    before = sequence_logits(text, codes)
    for i in range(L + N):
        j = i if direction == "t2i" else i - N  # index in the text
        j = j if 0 <= j < L else None
        other_text, other = text.clone(), codes.flatten(1).clone()
        if j is not None:
            other_text[:, j] = (other_text[:, j] + 1) % V
        else:
            at = i - L if direction == "t2i" else i
            other[:, at] = (other[:, at] + 1) % K
        change = (sequence_logits(other_text, other.view_as(codes)) - before).abs()
        assert change[:, : i + 1].max() < 1e-5
        assert i >= L + N - 1 or change[:, i + 1 :].max() > 1e-3


def test_each_position_gets_the_logits_of_its_modality_only():
    model, (text, codes) = small(), batch()
    words, image = model(text, codes, "t2i")
    assert words.shape == (3, L - 1, V) and image.shape == (3, N, K)
    words, image = model(text, codes, "i2t")
    assert words.shape == (3, L - 1, V) and image.shape == (3, N - 1, K)
    with pytest.raises(SettingsError, match="sideways"):
        model(text, codes, "sideways")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_loss_equals_a_loop_over_targets(direction):
    model, (text, codes) = small(), batch()
    losses = model.loss(text, codes, direction)
    words, image = model(text, codes, direction)
    flat = codes.flatten(1)
    skip = 0 if direction == "t2i" else 1
    text_terms, image_terms = [], []
    for b in range(len(text)):
        for j in range(1, L):
            if text[b, j] != 0:
                p = words[b, j - 1].double().softmax(-1)
                text_terms.append(-p[text[b, j]].log())
        for i in range(skip, N):
            image_terms.append(-image[b, i - skip].double().softmax(-1)[flat[b, i]].log())
    slow_text, slow_image = torch.stack(text_terms).mean(), torch.stack(image_terms).mean()
    given, target = (slow_text, slow_image) if direction == "t2i" else (slow_image, slow_text)
    torch.testing.assert_close(losses.text.double(), slow_text.detach())
    torch.testing.assert_close(losses.image.double(), slow_image.detach())
    torch.testing.assert_close(losses.total.double(), (given + 7 * target) / 8)


def test_one_step_lowers_the_loss():
    model, (text, codes) = small(), batch(8)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    for direction in DIRECTIONS:
        loss = model.loss(text, codes, direction).total
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        assert model.loss(text, codes, direction).total < loss


def test_bfloat16_activations_stay_near_float32():
    model, (text, codes) = small(), batch()
    exact = model.loss(text, codes, "t2i")
    model.dtype = torch.bfloat16
    rounded = model.loss(text, codes, "t2i")
    assert rounded.total.dtype == torch.float32
    torch.testing.assert_close(rounded.total, exact.total, rtol=2e-2, atol=0)


def test_a_new_model_predicts_uniformly():
    text, codes = batch()
    losses = Transformer(V, K, L, GRID, dim=32, depth=1).loss(text, codes, "t2i")
    assert losses.image.item() == pytest.approx(torch.tensor(K).log().item(), rel=1e-5)


def test_neighbours_are_the_known_codes_around_the_predicted_position():
    sources = image_offsets(GRID, 1)
    assert sources[5].tolist() == [5, 1, 2, 3]  # 6 is predicted: row 1, column 2
    assert sources[3].tolist() == [3, -1, 0, 1]  # 4 is predicted: row 1, column 0
    assert sources[6].tolist() == [6, 2, 3, -1]  # 7 is predicted: last column
    assert (sources[:3, 1:] == -1).all()  # the first row has nothing above
    assert image_offsets(GRID, 0).tolist() == [[i] for i in range(GRID * GRID)]
    assert text_offsets(3, 2).tolist() == [[0, -1], [1, 0], [2, 1]]


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_neighbours_are_all_that_is_known_within_reach(reach):
    for position, found in enumerate(image_offsets(GRID, reach).tolist()):
        row, column = divmod(position + 1, GRID)  # of the code that is predicted
        near = {r * GRID + c for r in range(GRID) for c in range(GRID)
                if abs(r - row) <= reach and abs(c - column) <= reach}
        known = {i for i in near if i <= position} | {position}
        assert found[0] == position and {i for i in found if i >= 0} == known


@pytest.mark.parametrize("sources", [text_offsets(9, 4), image_offsets(GRID, 2)])
def test_embedding_by_mapped_tables_equals_embedding_by_mapped_tokens(sources):
    """Outputs and gradients; planted faults: slices of the map mixed up, no row for "none"."""
    torch.manual_seed(0)
    layer = NeighbourEmbedding(5, sources, dim=8).double()
    tokens, part = torch.randint(0, 5, (3, len(sources))), slice(2, None)
    padded = torch.cat((tokens, torch.full((3, 1), 5)), 1)
    slow = layer.mix(layer.table[padded[:, sources[part]]].flatten(2))
    fast = layer(tokens, part, torch.float64)
    torch.testing.assert_close(fast, slow)
    g = torch.randn_like(slow)
    for a, b in zip(*(torch.autograd.grad(y, list(layer.parameters()), g) for y in (slow, fast)),
                    strict=True):
        torch.testing.assert_close(a, b)


def test_sizes():
    def size(**sizes) -> int:
        return sum(p.numel() for p in Transformer(50, 256, 48, 16, **sizes).parameters())

    assert size() == 938_624
    # heads * head_dim = 512 is the inner width, not dim
    assert size(dim=256, depth=8, heads=8, head_dim=64) > 8_000_000
