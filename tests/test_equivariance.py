"""The measures on encoders whose answer is known."""

import math

import pytest
import torch
from torch.nn import functional as F

from tevq.data.source import SourceImages
from tevq.evaluate import equivariance
from tevq.evaluate.equivariance import Agreement, Encoded, Probe
from tevq.models.quantizer import Quantizer

STRIDE = 4


class PatchEncoder:
    """Features are the cell's own pixels: equivariant at multiples of the stride."""

    stride = STRIDE

    def __init__(self, K: int = 32, collapsed: bool = False):
        torch.manual_seed(0)
        self.quantizer = Quantizer(K, 3 * STRIDE**2)
        torch.nn.init.normal_(self.quantizer.codebook)
        if collapsed:
            with torch.no_grad():
                self.quantizer.codebook[1:] += 1e3

    def encode(self, x):
        return F.pixel_unshuffle(x, STRIDE)


class BorderEncoder(PatchEncoder):
    """Knows where it is: the row is added to the features, which no shift leaves alone."""

    def encode(self, x):
        z = super().encode(x)
        return z + 3 * torch.arange(z.shape[2])[:, None]


class MeanEncoder(PatchEncoder):
    """Sees the whole image: its mean is added everywhere, so other items matter."""

    def encode(self, x):
        return super().encode(x) + 20 * (x.mean((1, 2, 3), keepdim=True) + 0.8)


@pytest.fixture(scope="module")
def probe():
    random = torch.Generator().manual_seed(0)
    images = torch.zeros(40, 28, 28, dtype=torch.uint8)
    images[:, 3:25, 3:25] = torch.randint(0, 256, (40, 22, 22), generator=random,
                                          dtype=torch.uint8)
    return Probe(SourceImages(images, torch.zeros(40, dtype=torch.long)), 12, 0)


def values(model, probe):
    rows = equivariance.measure(equivariance.compare(model, probe))
    return {(row["measure"], row["cells"]): row for row in rows}


def test_patch_encoder_is_perfect_on_the_grid_and_only_there(probe):
    found = values(PatchEncoder(), probe)
    for cells in ("all", "foreground"):
        for measure in ("official", "grid", "context"):
            row = found[measure, cells]
            assert row["agreement"] == 1 and row["kappa"] == pytest.approx(1)
            assert row["feature_error"] == 0
        subgrid = found["subgrid", cells]
        assert subgrid["agreement"] < 0.9 and subgrid["feature_error"] > 0.1
    assert found["grid", "foreground"]["n"] < found["grid", "all"]["n"]
    assert found["subgrid", "foreground"]["agreement"] < found["subgrid", "all"]["agreement"]


def test_every_pair_is_counted(probe):
    """Ten pairs of five places; 8 and 3 steps in three directions; four quadrants. Planted fault: a
    range that ends one step too early."""
    found = values(PatchEncoder(), probe)
    pairs = {name: found[name, "all"]["n"] / (12 * 8 * 8)
             for name in ("official", "grid", "subgrid", "context")}
    assert pairs == {"official": 10, "grid": 24, "subgrid": 9, "context": 4}


@pytest.mark.parametrize("channel", range(3))
def test_ink_of_every_colour_is_seen(channel):
    """Planted fault: a look at the red channel alone."""
    x = torch.full((1, 3, 2 * STRIDE, 2 * STRIDE), -1.0)
    x[0, channel, 0, STRIDE] = 1
    ink = equivariance.encode(PatchEncoder(), x).ink
    assert ink.tolist() == [[[False, True], [False, False]]]


def test_an_encoder_that_knows_the_row_fails_on_shifts_but_not_on_context(probe):
    found = values(BorderEncoder(), probe)
    assert found["grid", "all"]["agreement"] < 0.8
    assert found["official", "all"]["agreement"] < 0.8
    assert found["context", "all"]["agreement"] == 1


def test_an_encoder_that_sees_everything_fails_on_context_but_not_on_shifts(probe):
    found = values(MeanEncoder(), probe)
    assert found["context", "all"]["agreement"] < 0.9
    assert found["grid", "all"]["agreement"] > 0.999  # means differ in their last bits


def test_a_collapsed_codebook_agrees_always_and_is_told(probe):
    for row in values(PatchEncoder(collapsed=True), probe).values():
        assert row["agreement"] == 1 and row["kappa"] is None and row["codes_used"] == 1


def test_kappa_and_error_by_hand():
    codes = torch.tensor([[[0, 0], [1, 1]]])
    other = torch.tensor([[[0, 1], [1, 1]]])
    ink = torch.tensor([[[False, True], [False, False]]])
    ones = torch.ones(1, 2, 2, 2)
    total = Agreement(2, [(Encoded(ones, codes, ink), Encoded(ones * 3, other, ink & False))])
    every, foreground = total.rows()
    assert every["agreement"] == 0.75 and every["n"] == 4
    chance = 0.5 * 0.25 + 0.5 * 0.75
    assert every["kappa"] == pytest.approx((0.75 - chance) / (1 - chance))
    assert every["feature_error"] == pytest.approx(2)
    assert foreground["agreement"] == 0 and foreground["n"] == 1


def test_foreground_is_ink_in_either_window_and_codes_are_those_of_the_reference():
    """Planted faults: ink of the reference alone; codes in use after the shift."""
    codes = torch.zeros(1, 2, 2, dtype=torch.long)
    moved = torch.tensor([[[False, True], [False, False]]])
    ones = torch.ones(1, 2, 2, 2)
    pair = Encoded(ones, codes, moved & False), Encoded(ones, codes + moved.long(), moved)
    every, foreground = Agreement(2, [pair]).rows()
    assert (foreground["n"], foreground["agreement"], every["agreement"]) == (1, 0, 0.75)
    assert every["codes_used"] == 1


def test_cohens_kappa_is_scikit_learns():
    from sklearn.metrics import cohen_kappa_score

    a, b = torch.randint(0, 4, (2, 5, 6, 6))
    b = torch.where(torch.rand(b.shape) < 0.5, a, b)
    ink, features = torch.ones(5, 6, 6, dtype=torch.bool), torch.rand(5, 2, 6, 6)
    total = Agreement(4, [(Encoded(features, a, ink), Encoded(features, b, ink))])
    expected = cohen_kappa_score(a.flatten(), b.flatten())
    assert total.rows()[0]["kappa"] == pytest.approx(expected)


def test_merged_codes_are_compared_as_if_they_had_been_written_so():
    a, b = torch.randint(0, 6, (2, 5, 4, 4))
    ink, features = torch.rand(5, 4, 4) < 0.5, torch.rand(5, 2, 4, 4)
    groups = torch.tensor([0, 1, 0, 2, 1, 2])
    fine = Agreement(6, [(Encoded(features, a, ink), Encoded(features, b, ink))])
    coarse = Agreement(3, [(Encoded(features, groups[a], ink), Encoded(features, groups[b], ink))])
    assert fine.rows(groups) == coarse.rows()
    assert fine.rows() != coarse.rows()


def test_the_nearest_codes_are_merged_first():
    codebook = torch.tensor([[0.0, 0], [9, 9], [0, 0.1], [9, 8.9], [5, 0]])
    groups = equivariance.merge_codes(codebook, 3)
    assert groups[0] == groups[2] != groups[1] == groups[3] and len(groups.unique()) == 3


def test_merging_makes_an_encoder_that_knows_the_row_look_equivariant(probe):
    model = BorderEncoder()
    found = equivariance.compare(model, probe)
    rows = [row for row in equivariance.merged(found, model.quantizer.table())
            if (row["measure"], row["cells"]) == ("grid", "foreground")]
    assert [row["groups"] for row in rows] == [16, 8, 4]
    own = found["grid"].rows()[1]
    assert rows[-1]["agreement"] > own["agreement"] and rows[-1]["codes_used"] <= 4
    assert rows[-1]["feature_error"] == own["feature_error"]  # the features stay what they were


def test_shifts_and_their_aligned_positions():
    assert [equivariance.nearest_cell(d, 4) for d in range(9)] == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert equivariance.shifts([1, 32]) == [(0, 1), (1, 0), (1, 1), (0, 32), (32, 0), (32, 32)]


def test_sweep_is_perfect_at_every_multiple_of_the_stride(probe):
    rows = [r for r in equivariance.sweep(PatchEncoder(), probe) if r["cells"] == "foreground"]
    assert [r["shift"] for r in rows] == list(range(17))
    for row in rows:
        assert (row["agreement"] == 1) == (row["shift"] % STRIDE == 0), row
        assert (row["feature_error"] < 1e-6) == (row["shift"] % STRIDE == 0)


def test_sums_of_several_pairs(probe):
    model = PatchEncoder()
    pairs = list(equivariance.compare_shifts(model, probe, [(0, 1), (2, 0)]))
    pooled = Agreement(model.quantizer.K, pairs).rows()[0]
    parts = [Agreement(model.quantizer.K, [pair]).rows()[0] for pair in pairs]
    n = sum(part["n"] for part in parts)
    expected = sum(part["agreement"] * part["n"] for part in parts) / n
    assert pooled["agreement"] == pytest.approx(expected) and pooled["n"] == n
    assert math.isfinite(pooled["kappa"])
