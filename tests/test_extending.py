"""A new way of downsampling and a new quantizer are one entry each, through the whole study."""

import pytest
import torch
from small import tiny
from torch import nn
from torch.nn import functional as F

from tevq import presets
from tevq.config import SettingsError
from tevq.evaluate import evaluate as evaluation
from tevq.models import quantizer, vqgan
from tevq.models.quantizer import Quantized
from tevq.train import stage1, stage2


class MeanPool(nn.AvgPool2d):
    """Mean over 2x2 windows."""

    def __init__(self, channels: int, padding: str):
        super().__init__(2)


class Signs(nn.Module):
    """Lookup-free quantizer (Yu et al. 2024): D = log2 K channels, each -1 or 1. Learns nothing."""

    def __init__(self, K: int, D: int):
        super().__init__()
        if K != 2**D:
            raise SettingsError(f"stage1.codes = {K} must be 2 ** stage1.code_dim = {2**D}")
        self.K, self.D = K, D

    def table(self) -> torch.Tensor:
        bits = torch.arange(self.K)[:, None] >> torch.arange(self.D) & 1
        return bits.float() * 2 - 1

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        return ((z > 0).long() << torch.arange(self.D)[:, None, None]).sum(1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        return self.table()[codes].permute(0, 3, 1, 2)

    def forward(self, z: torch.Tensor) -> Quantized:
        z, codes = z.float(), self.nearest(z)
        chosen = self.lookup(codes)
        return Quantized(z + (chosen - z).detach(), codes, z.new_zeros(()), F.mse_loss(z, chosen))

    def init_codes(self, vectors: torch.Tensor, seed: int) -> None:
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", 400)
    monkeypatch.setattr(evaluation, "PROBE_ITEMS", 6)


def test_a_new_downsampler_is_one_entry(tmp_path, monkeypatch):
    """Planted fault: a second list of names in the settings."""
    with pytest.raises(SettingsError, match="mean"):
        tiny().override({"stage1.downsample": "mean"})
    monkeypatch.setitem(vqgan.DOWNSAMPLERS, "mean", MeanPool)
    made = presets.Variant("mean", {"stage1.downsample": "mean"}, "mean of 2x2")
    monkeypatch.setitem(presets.VARIANTS, "mean", made)
    run = stage1.train(tiny("mean"), tmp_path)
    assert run.done and run.name.startswith("stage1/digits-mean-s0-")


def test_a_new_quantizer_is_one_entry(tmp_path, monkeypatch):
    """Planted faults: something outside asks for a codebook; names listed in the settings, too."""
    with pytest.raises(SettingsError, match="signs"):
        tiny("sc", **{"stage1.quantizer": "signs"})
    monkeypatch.setitem(quantizer.QUANTIZERS, "signs", Signs)
    s = tiny("sc", **{"stage1.quantizer": "signs", "stage1.codes": 16, "stage1.code_dim": 4})
    stage1.train(s, tmp_path)
    assert isinstance(vqgan.load(s, tmp_path).quantizer, Signs)
    stage2.train(s, tmp_path)
    summary = evaluation.evaluate_quantizer(s, tmp_path).summary()
    assert 1 <= summary["reconstruction"][0]["codes_used"] <= 16
    assert evaluation.evaluate(s, tmp_path).done


def test_the_quantizer_of_the_paper_changes_no_digest():
    """Planted fault: the setting without its neutral value."""
    named = tiny("te", **{"stage1.quantizer": "vq"})
    assert named == tiny("te") and "quantizer" not in named.as_dict()["stage1"]


def test_a_quantizer_starts_where_it_wants_and_counts_its_codes():
    model = Signs(8, 3)
    z = model.lookup(torch.arange(8).view(1, 2, 4)) * 0.3
    found = model(z)
    assert found.codes.flatten().tolist() == [*range(8)]
    assert torch.equal(found.features, model.lookup(found.codes))
    health = quantizer.codebook_health(model.table(), stage1.count(found.codes, model.K))
    assert health["codes_used"] == 8 and health["perplexity"] == pytest.approx(8)
