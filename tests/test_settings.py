"""Settings: overrides are typed, ranged and named; presets and variants differ as they say."""

import dataclasses
import json

import pytest

from tevq import config as settings
from tevq import forecast, pipeline, presets
from tevq.__main__ import main
from tevq.config import ROOT, Settings, SettingsError, option
from tevq.grid import choose
from tevq.models.sampling import check_options
from tevq.runs.run import open_run, run_config

COMMITTED = sorted(ROOT.glob("results/*/runs/*/*/config.json"))
GROUPS = ("data", "classifier", "stage1", "stage2", "evaluation")
KINDS = {  # kinds of runs that a group of settings decides
    "data": {"classifier", "stage1", "stage2", "evaluation", "quantizer"},
    "classifier": {"classifier", "stage1", "stage2", "evaluation", "quantizer"},
    "stage1": {"stage1", "stage2", "evaluation", "quantizer"},
    "stage2": {"stage2", "evaluation"}, "evaluation": {"evaluation"},
}


def grown(group: type, base: object) -> object:
    """The same settings in a class with one more field, which stands at its neutral value."""
    new = dataclasses.make_dataclass(
        group.__name__, [("made_up", int, option(5, low=0, neutral=5))], bases=(group,),
        frozen=True)
    return new(**{f.name: getattr(base, f.name) for f in dataclasses.fields(group)})


def with_a_new_setting_everywhere(base: Settings) -> Settings:
    """Every group, and Settings itself, has one more field."""
    groups = {name: grown(type(getattr(base, name)), getattr(base, name)) for name in GROUPS}
    return grown(Settings, dataclasses.replace(base, **groups))


def stored(preset: str, tree: dict) -> Settings:
    """Settings from the part of them that a run stores; the rest is the preset's."""
    made = presets.load(preset, tree.get("variant", "te"), tree.get("seed", 0))
    groups = {name: dataclasses.replace(getattr(made, name), **{
        key: tuple(value) if isinstance(value, list) else value for key, value in part.items()})
        for name, part in tree.items() if isinstance(part, dict)}
    return dataclasses.replace(made, precision=tree["precision"], **groups)


@pytest.mark.promise("records")
def test_a_new_setting_at_its_neutral_value_orphans_no_finished_run():
    """Planted faults: neutral values in the digest; a group of settings forgotten."""
    assert len(COMMITTED) > 100
    for path in COMMITTED:
        tree = json.loads(path.read_text(encoding="utf-8"))["settings"]
        changed = with_a_new_setting_everywhere(stored(path.parts[-5], tree))
        run = open_run(changed, path.parts[-3], ROOT / "results")
        assert (run.folder, run.config) == (path.parent, tree)


@pytest.mark.promise("records")
@pytest.mark.parametrize("kind", sorted(KINDS["data"]))
def test_a_new_setting_at_another_value_is_another_run(kind):
    """Planted faults: left out at every value; only the settings known today are looked at."""
    base = with_a_new_setting_everywhere(presets.load("smoke", "te"))
    assert "data.made_up" not in settings.names() and base.data.made_up == 5
    before = run_config(base, kind)
    assert before == run_config(presets.load("smoke", "te"), kind)
    assert run_config(dataclasses.replace(base, made_up=6), kind) == before | {"made_up": 6}
    for group in GROUPS:
        other = dataclasses.replace(
            base, **{group: dataclasses.replace(getattr(base, group), made_up=6)})
        assert (run_config(other, kind) != before) == (kind in KINDS[group]), group
    assert base.as_dict(neutral=True)["stage1"]["made_up"] == 5


def test_a_variant_unknown_to_the_paper_is_one_record(monkeypatch):
    """Planted faults: a colour, a default or a forbidden override that knows five names only."""
    record = presets.Variant("few", {"stage1.codes": 16}, "FEW  16 codes")
    few, more = record, presets.Variant("more", {"stage1.codes": 64}, "MORE  64 codes")
    assert few.colour and few.marker and (few.colour, few.marker) != (more.colour, more.marker)
    assert few.colour not in {v.colour for v in presets.VARIANTS.values()}
    monkeypatch.setitem(presets.VARIANTS, "few", few)
    assert presets.load("smoke", "few").stage1.codes == 16
    assert presets.load("smoke", "sc", 0, "stage1.codes=16").stage1.codes == 16
    with pytest.raises(SettingsError, match="stage1.codes belongs to the variant"):
        presets.load("smoke", "few", 0, "stage1.codes=32")
    assert choose("laptop").variants == presets.PAPER  # runs when it is named
    assert choose("laptop", "few,te").variants == ("few", "te")
    assert "-few-s0-" in open_run(presets.load("smoke", "few"), "stage1", "x").folder.name


@pytest.mark.parametrize("name", ["a-b", "a,b", "", "../x"])
def test_names_of_variants_that_break_folder_names_are_refused(name):
    with pytest.raises(SettingsError, match="use letters, digits and _ only"):
        presets.Variant(name, {}, "")


def numeric() -> list[str]:
    """Names of all settings that are numbers."""
    tree = Settings().as_dict(neutral=True)
    flat = {f"{k}.{n}": v for k, part in tree.items() if isinstance(part, dict)
            for n, v in part.items()}
    return [k for k, v in flat.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]


@pytest.mark.promise("input")
@pytest.mark.parametrize("name", numeric())
def test_no_number_accepts_what_is_none(name):
    """Planted faults: comparisons that not-a-number passes; True taken for 1."""
    if name in presets.OF_VARIANTS:
        base = Settings().override
    else:
        def base(values):
            return presets.load("smoke", "sc", 0, values)
    for value in (True, False, "true", float("nan"), "nan", "inf", float("-inf"), "1e999",
                  10**400, None, [1], {}, "", "\0"):
        with pytest.raises(SettingsError) as error:
            base({name: value})
        assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.promise("input")
@pytest.mark.parametrize("arguments", [
    {"seeds": True}, {"seeds": 2**31}, {"seeds": "0," + "9" * 5000}, {"seeds": "-1"},
    {"fraction": True}, {"fraction": float("nan")}, {"fraction": 0}, {"preset": ["smoke"]},
    {"variants": [["te"]]}, {"overrides": {"stage1.multipliers": (1, True)}},
    {"overrides": {"stage1.multipliers": (1, 2.5)}}, {"overrides": {"stage1.multipliers": "1-99"}},
    {"overrides": {"stage1.decay": 1}}, {"overrides": {"data.source": True}},
    {"overrides": {("a",): 1}}, {"overrides": 5}], ids=str)
def test_a_grid_refuses_values_of_another_kind(arguments):
    """Planted faults: only the first seed checked; True counted as 1."""
    with pytest.raises(SettingsError) as error:
        choose(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.promise("input")
@pytest.mark.parametrize("temperature, top_k", [
    (True, None), (float("nan"), None), (float("inf"), None), (0, 3), (1.0, True), (1.0, 2.0),
    (1.0, 0)])
def test_sampling_refuses_options_that_are_no_numbers(temperature, top_k):
    """Planted fault: True taken for 1."""
    check_options(0.5, 3)
    with pytest.raises(SettingsError):
        check_options(temperature, top_k)


@pytest.mark.promise("input")
def test_a_folder_that_cannot_be_is_one_line(monkeypatch):
    """Planted fault: expanduser as it is, which raises RuntimeError."""
    monkeypatch.setenv("TEVQ_RESULTS", "~no-such-user-here/x")
    with pytest.raises(SettingsError, match="folder .* cannot be used: .*write the whole path"):
        settings.results_root()


def test_a_home_folder_that_the_shell_left_alone(monkeypatch, tmp_path, capsys):
    """Planted fault: `--results=~/x` makes a folder called ~ here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pipeline, "plan", lambda grid, *more: print(grid.results))
    monkeypatch.setattr(forecast, "table", lambda made: "")
    assert main(["--dry-run", "--results=~/x"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "x")]


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
    ("stage2.fraction=1.5", ["1.5", "at most 1.0"]),
    ("steps", ["'steps'", "name=value"]),
    ("steps=5", ["'steps'; did you mean 'classifier.steps' or 'stage1.steps' or 'stage2.steps'?"]),
    ("size=5", ["'size'; allowed: classifier.*, data.*", "precision", "stage2.*"]),
    ("data.size=5", ["'data.size'; allowed: data.scene, data.seed, data.source"]),
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
                                       ("smoke", "te", True)])
def test_unknown_presets_variants_and_seeds_are_refused(arguments):
    with pytest.raises(SettingsError):
        presets.load(*arguments)


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_te_differs_from_sc_in_the_penalty_only(preset):
    te, sc = presets.load(preset, "te"), presets.load(preset, "sc")
    assert dataclasses.replace(te.stage1, orthogonality=0.0) == sc.stage1
    assert te.stage1.orthogonality == 10.0
    assert te.stage2 == sc.stage2 and te.data == sc.data
    downsamplers = {presets.load(preset, v).stage1.downsample for v in presets.PAPER}
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
def test_suggestions_come_first_and_lists_are_short():
    """Planted faults: all settings listed; the suggestion behind them; nothing said of commas."""
    for wrong in ("stage1.step=5", "steps=5", "data.sources=digits", "size=5"):
        with pytest.raises(SettingsError) as error:
            presets.load("smoke", "te", 0, wrong)
        assert len(str(error.value)) < 200
    with pytest.raises(SettingsError, match="^unknown variant 'tee'; did you mean 'te'[?]$"):
        choose(variants="tee")
    for wrong in ({"variants": "sc te"}, {"seeds": "0 1"}):
        with pytest.raises(SettingsError, match="holds a space; separate names with commas$"):
            choose(**wrong)


@pytest.mark.promise("input")
def test_ipython_shows_the_error_as_one_line():
    assert SettingsError("x = 3")._render_traceback_() == ["SettingsError: x = 3"]
