"""The figures of fixed examples: which rows, which clauses are right."""

from tevq import plots_examples
from tevq.captions import Clause
from tevq.items import class_names
from tevq.study import choose

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


def test_rows_of_the_painted_examples(tmp_path, monkeypatch):
    """Planted faults: the decoding is ignored; every variant drawn where some are asked for."""
    asked = []

    def paint(settings, split, results, index, decoding):
        asked.append((settings.variant, settings.seed, decoding))

    found = {"scene": list(range(20))}
    monkeypatch.setattr(plots_examples, "examples", lambda *_: found)
    monkeypatch.setattr(plots_examples, "paint", paint)
    small = choose("smoke", "cb,sc,te", "0,1", results=str(tmp_path))
    figure = plots_examples.text_to_image(small, decoding="greedy")
    assert asked == [("cb", 0, "greedy"), ("sc", 0, "greedy"), ("te", 0, "greedy")]
    assert "greedy" in figure.get_suptitle()
    asked.clear()
    plots_examples.text_to_image(small, seeds=small.seeds, variants=small.compared)
    assert asked == [(v, s, "sampled") for v in ("sc", "te") for s in (0, 1)]
