"""Fixed examples: what is kept of them, and their figures (which rows, which clauses are right)."""

import numpy as np
import torch
from small import TINY, tiny

from tevq.data.captions import UNUSED, Clause
from tevq.data.source import class_names
from tevq.evaluate import examples
from tevq.evaluate.evaluator import split_of
from tevq.grid import choose
from tevq.report import plots_examples
from tevq.runs.run import open_run

NUMBERS = class_names("mnist")


def test_clauses_of_a_caption_are_marked():
    truth = [Clause(0, 0, 2), Clause(3, 3, 9)]
    text = "the upper left is white two, and the lower right is red nine, also the two."
    assert plots_examples.marked(text, truth, NUMBERS) == [
        ("the upper left is white two", True), ("the lower right is red nine", False),
        ("the two", False)]
    twice = plots_examples.marked("white two at the top left, white two at the top left.", truth,
                                  NUMBERS)
    assert [right for _, right in twice] == [True, False]
    assert plots_examples.marked("", truth, NUMBERS) == [("", False)]


def few(value: int, n: int = 3) -> examples.Painted:
    """Examples in one flat colour each, (value, k, 255 - value), read as value + k."""
    images = torch.zeros(n, 3, 64, 64)
    for k in range(n):
        images[k] = torch.tensor([value, k, 255 - value])[:, None, None] / 127.5 - 1
    read = np.full((n, 4), UNUSED, dtype=np.uint8)
    read[:, 0] = value + np.arange(n)
    return examples.Painted(images, read, read % 5)


def test_pictures_come_back_as_they_were_kept(tmp_path):
    """Planted faults: split or decoding mixed up; the examples of a row; rows for columns; as many
    examples expected in every split (a small one may lack some).
    """
    cell = tiny()
    run = open_run(cell, "evaluation", tmp_path)
    kept = {split: {"scene": [0, 1, 2]} for split in ("test", "test_seen")}
    painted = {(split, decoding): few(40 * i + 20 * j, 4 - i) for i, split in enumerate(kept)
               for j, decoding in enumerate(("sampled", "greedy"))}
    examples.save(run, kept, painted)
    assert examples.load(cell, "test", tmp_path) is None  # the evaluation has not finished
    run.finish({})
    for (split, decoding), part in painted.items():
        found = examples.load_painted(cell, split, tmp_path, [2, 0], decoding)
        assert torch.allclose(found.images, part.images[[2, 0]], atol=1e-6)
        assert (found.label == part.label[[2, 0]]).all()
        assert (found.colour == part.colour[[2, 0]]).all() and found.label.dtype == np.uint8
    assert examples.load_painted(cell, "val", tmp_path, [0]) is None
    assert examples.load(cell, "test", tmp_path)["scene"] == [0, 1, 2]
    (run.folder / examples.PICTURES).unlink()
    assert examples.load_painted(cell, "test", tmp_path, [0]) is None


def test_the_first_scenes_of_every_case():
    case = np.array([4, 0, 0, 1, 2, 3] + [0, 1, 2, 3, 4] * 4)
    found = examples.first_of_each_case(case)
    assert case[found].tolist() == sorted(case[found].tolist()) == [k for k in range(5)
                                                                    for _ in range(4)]
    assert found[:4].tolist() == [1, 2, 6, 11] and found[-4:].tolist() == [0, 10, 15, 20]


def test_evaluations_without_pictures_are_named(tmp_path):
    """They were made before pictures were kept; what is missing or complete is not named."""
    small = choose("smoke", "sc,te", "0,1", results=str(tmp_path))
    kept = {"test": {"scene": [0, 1, 2]}}
    for seed, painted in ((0, {}), (1, {("test", "sampled"): few(7)})):
        run = open_run(small.cell("sc", seed), "evaluation", tmp_path)
        examples.save(run, kept, painted)
        run.finish({})
    assert plots_examples.unpictured(small) == [
        open_run(small.cell("sc", 0), "evaluation", tmp_path).name]


def test_rows_of_the_painted_examples(tmp_path, monkeypatch):
    """Planted faults: the decoding is ignored; every variant drawn where some are asked for; a
    missing run drawn, or not named.
    """
    small = choose("smoke", "cb,sc,te", "0,1", "", TINY, str(tmp_path))
    scenes, asked = split_of(small.settings, "test")[0], []
    chosen = examples.first_of_each_case(scenes.case)[::2]
    found = {"scene": chosen.tolist()}

    def load_painted(settings, split, results, index, decoding):
        asked.append((settings.variant, settings.seed, decoding))
        part = scenes.take(chosen[index])
        painted = examples.Painted(torch.zeros(len(index), 3, 64, 64), part.label, part.colour)
        return painted if settings.variant != "cb" else None

    monkeypatch.setattr(examples, "PER_CASE", 1)  # of the two that there are
    monkeypatch.setattr(examples, "load", lambda *_: found)
    monkeypatch.setattr(examples, "load_painted", load_painted)
    figure = plots_examples.text_to_image(small, decoding="greedy")
    assert asked == [("cb", 0, "greedy"), ("sc", 0, "greedy"), ("te", 0, "greedy")]
    assert "greedy" in figure.get_suptitle()
    words = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert words == ["asked for\n(real items)", "sc\nseed 0", "te\nseed 0"]
    assert any(text.get_text().endswith("missing: cb seed 0") for text in figure.texts)
    asked.clear()
    plots_examples.text_to_image(small, seeds=small.seeds, variants=small.compared)
    assert asked == [(v, s, "sampled") for v in ("sc", "te") for s in (0, 1)]
