"""Settings: overrides are typed, ranged and named; presets and variants differ as they say."""

import dataclasses

import pytest

from tevq import config as settings
from tevq import presets
from tevq.config import SettingsError


@pytest.mark.parametrize("text, words", [
    ("stage1.stps=3", ["stage1.stps", "did you mean 'stage1.steps'"]),
    ("stage1.steps=many", ["'many'", "int"]),
    ("stage1.steps=0", ["0", "at least 1"]),
    ("stage1.steps=1.5", ["'1.5'", "int"]),
    ("stage1.decay=perhaps", ["'perhaps'", "bool"]),
    ("stage1.padding=mirror", ["'mirror'", "replicate", "zeros", "circular"]),
    ("stage1.multipliers=1-x", ["'1-x'", "1-2-4"]),
    ("stage1.codes=512", ["512", "32", "orthogonal", "equation 5"]),
    ("stage1.orthogonality=1", ["stage1.orthogonality", "variant"]),
    ("stage2.fraction=1.5", ["1.5", "between"]),
    ("steps", ["'steps'", "name=value"]),
])
@pytest.mark.promise("input")
def test_a_bad_override_is_one_line_with_value_and_remedy(text, words):
    with pytest.raises(SettingsError) as error:
        presets.load("smoke", "te", 0, text)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_overrides_arrive_in_the_type_of_their_field():
    s = presets.load("smoke", "sc", 3, "stage1.steps=1e2, stage1.decay=false, "
                     "stage1.multipliers=1-2-2, stage2.lr=2e-3, data.source=mnist")
    assert (s.stage1.steps, s.stage1.decay, s.stage1.multipliers) == (100, False, (1, 2, 2))
    assert (s.stage2.lr, s.data.source, s.seed, s.variant) == (2e-3, "mnist", 3, "sc")
    assert isinstance(s.stage1.steps, int)
    same = presets.load("smoke", "sc", 3, {"stage1.steps": 100, "stage1.decay": False,
                                           "stage1.multipliers": [1, 2, 2], "stage2.lr": 2e-3,
                                           "data.source": "mnist"})
    assert same == s


@pytest.mark.promise("input")
@pytest.mark.parametrize("arguments", [("tiny",), ("smoke", "xx"), ("smoke", "te", -1),
                                       ("smoke", "te", True), ("smoke", "te", "0")])
def test_unknown_presets_variants_and_seeds_are_refused(arguments):
    with pytest.raises(SettingsError):
        presets.load(*arguments)


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_te_differs_from_sc_in_the_penalty_only(preset):
    te, sc = presets.load(preset, "te"), presets.load(preset, "sc")
    assert dataclasses.replace(te.stage1, orthogonality=0.0) == sc.stage1
    assert te.stage1.orthogonality == 10.0
    assert te.stage2 == sc.stage2 and te.data == sc.data
    downsamplers = {presets.load(preset, v).stage1.downsample for v in presets.VARIANTS}
    assert len(downsamplers) == 4


def test_paper_preset_has_the_published_sizes():
    s = presets.load("paper", "te")
    assert (s.data.train, s.data.val, s.data.test) == (300_000, 3_000, 3_000)
    assert (s.stage1.codes, s.stage1.code_dim, s.stage1.channels) == (256, 256, 128)
    assert s.stage1.steps == 300_000 * 40 // 192 and s.stage1.disc_start == 30_001
    assert s.stage1.perceptual == "lpips-vgg" and s.stage1.codebook_start == "uniform"
    assert (s.stage2.dim, s.stage2.depth, s.stage2.heads, s.stage2.head_dim) == (256, 8, 8, 64)
    assert s.stage2.steps == 2 * 20 * 300_000 // 200  # each batch in both directions


def test_digest_depends_on_content_not_on_order():
    assert settings.digest({"a": 1, "b": 2}) == settings.digest({"b": 2, "a": 1})
    assert settings.digest({"a": 1}) != settings.digest({"a": 2})


@pytest.mark.promise("input")
def test_ipython_shows_the_error_as_one_line():
    assert SettingsError("x = 3")._render_traceback_() == ["SettingsError: x = 3"]
