"""The playground's rules are those of tevq: captions, held-out combinations, choices, agreement."""

import json
import shutil
import subprocess

import pytest
import torch
from check import ROOT

from tevq import pretrained
from tevq.data import captions, scenes
from tevq.data.source import load_source
from tevq.evaluate import metrics
from tevq.evaluate.equivariance import Agreement, Encoded, merge_codes, nearest_cell
from tevq.grid import COMPARED
from tevq.models import sampling

LEFT = "the upper left is blue nine"
ODD = (LEFT, f"{LEFT}.", "the upper left is pink nine.", "the center is red two.", ".", "",
       f"{LEFT}, {LEFT}.", f"{LEFT}, and {LEFT}.", f"{LEFT}, and the top left is red one.",
       f"the center is red two, and {LEFT}.", "red the two is center.", f" {LEFT}.", f"{LEFT}. ",
       f"{LEFT}, and .", f"{LEFT}..", "The upper left is blue nine.")


@pytest.fixture
def found(site):
    """A function: tasks -> what the scripts of the site find, in Node."""
    if not (node := shutil.which("node")):
        pytest.skip("no Node.js")

    def answers(*tasks: dict) -> list:
        done = subprocess.run([node, ROOT / "tests/site_rules.mjs", site], input=json.dumps(tasks),
                              text=True, capture_output=True, check=False)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    return answers


def test_captions_are_read_as_tevq_reads_them(found, site):
    settings = pretrained.chosen().settings
    names = tuple(json.loads((site / "data.json").read_text(encoding="utf-8"))["grammar"]["names"])
    drawn = scenes.build(settings.data, "test", load_source("digits", "test").labels.numpy())
    good = [captions.Tokenizer(names).decode(row) for row in drawn.caption[:200]]
    clauses = [{"place": place, "colour": colour, "label": label} for place in range(5)
               for colour in range(4) for label in range(len(names))]
    read, ids, held = found({"task": "parse", "texts": [*good, *ODD]},
                            {"task": "encode", "texts": good},
                            {"task": "heldOut", "clauses": clauses})
    for text, here in zip([*good, *ODD], read, strict=True):
        wanted = captions.parse(text, names)
        assert {tuple(c[k] for k in captions.Clause._fields) for c in here["clauses"]} == set(
            wanted.clauses), text
        assert len(here["problems"]) == len(wanted.problems), text
    assert ids == drawn.caption[:200].tolist()
    rule = scenes.held_out(len(names))
    assert held == [rule[c["label"]] == (c["colour"], c["place"]) for c in clauses]


def test_tokens_are_chosen_as_tevq_chooses_them(found):
    logits = torch.randn(200, 60, generator=torch.Generator().manual_seed(0)) * 3
    u = torch.rand(200, generator=torch.Generator().manual_seed(1))
    kinds = ({"temperature": 0.7, "topK": 9}, {"temperature": 1.3, "topK": 0}, {"greedy": True})
    chosen = found(*({"task": "choose", "logits": logits.tolist(), "u": u.tolist(), "options": o}
                     for o in kinds))
    for o, here in zip(kinds, chosen, strict=True):
        assert here == sampling.choose(logits, u, o.get("temperature", 1.0), o.get("topK") or None,
                                       o.get("greedy", False)).tolist()


def test_agreement_is_measured_as_tevq_measures_it(found):
    random, pixels = torch.Generator().manual_seed(3), list(range(-8, 33))
    a, b = (torch.randint(5, (1, 8, 8), generator=random) for _ in range(2))
    ink, none = torch.rand(1, 8, 8, generator=random) < 0.4, torch.zeros(1, 1, 8, 8)
    rows = Agreement(5, [(Encoded(none, a, ink), Encoded(none, b, ink))]).rows()
    *here, one_code, cells = found(
        *({"task": "agreement", "a": a.flatten().tolist(), "b": b.flatten().tolist(),
           "mask": mask.flatten().tolist()} for mask in (torch.ones_like(ink), ink)),
        {"task": "agreement", "a": [3] * 9, "b": [3] * 9, "mask": [True] * 9},
        {"task": "nearest", "pixels": pixels, "stride": 4})
    for row, measured in zip(rows, here, strict=True):
        assert measured["agreement"] == pytest.approx(row["agreement"])
        assert measured["kappa"] == pytest.approx(row["kappa"])
    assert one_code["agreement"] == 1 and one_code["kappa"] is None
    assert cells == [nearest_cell(p, 4) for p in pixels]


def test_corners_are_empty_where_tevq_says_so(found):
    """Planted faults: a pixel more or less for ink; another brightness; channels added up; ink
    inside the center's cell counted; a named corner judged."""
    random = torch.Generator().manual_seed(4)
    images = torch.full((240, 3, 64, 64), -1.0)
    for image in images:  # about as many pixels in each corner, and about as bright, as decide
        for top, left in ((0, 0), (0, 32), (32, 0), (32, 32)):
            spots = torch.randperm(32 * 32, generator=random)[:int(torch.randint(
                metrics.INK_PIXELS * 4, (), generator=random))]
            at = top + spots // 32, left + spots % 32
            level = 2 * metrics.INK_LEVEL - 1 + 0.05 * torch.randn(len(spots), generator=random)
            image[int(torch.randint(3, (), generator=random)), at[0], at[1]] = level + 0.03
    named = [([4], [0], [3, 1], [])[i % 4] for i in range(len(images))]
    ink = metrics.quadrant_ink(images, torch.tensor([4 in places for places in named]))
    wanted = [[k for k in range(4) if ink[i, k] and k not in named[i]] for i in range(len(images))]
    assert len({tuple(corners) for corners in wanted}) > 10
    images = images.flatten(1).tolist()
    assert found({"task": "ink", "images": images, "places": named})[0] == wanted


@pytest.mark.parametrize("variant", COMPARED)
def test_codes_are_merged_as_tevq_merges_them(found, variant):
    table = pretrained.load(variant).evaluator.vqgan.quantizer.table()
    counts = (len(table), 200, 31, 4)
    for n, here in zip(counts, found(*({"task": "cut", "variant": variant, "groups": n}
                                       for n in counts)), strict=True):
        pairs = set(zip(merge_codes(table, n).tolist(), here, strict=True))
        assert len(pairs) == len(set(here)) == n  # the same groups, by other names
