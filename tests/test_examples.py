"""Fixed examples and figures: what is kept, and which rows a point of notebook 08 stands for."""

import numpy as np
import pandas as pd
import torch
from fakes import functions_of
from matplotlib.text import Text
from small import tiny

from tevq.data.captions import UNUSED
from tevq.data.source import class_names
from tevq.evaluate import evaluate
from tevq.report import style, why
from tevq.runs.run import open_run

NUMBERS = class_names("mnist")


def few(value: int, n: int = 3) -> evaluate.Painted:
    """Examples in one flat colour each, (value, k, 255 - value), read as value + k."""
    images = torch.zeros(n, 3, 64, 64)
    for k in range(n):
        images[k] = torch.tensor([value, k, 255 - value])[:, None, None] / 127.5 - 1
    read = np.full((n, 4), UNUSED, dtype=np.uint8)
    read[:, 0] = value + np.arange(n)
    return evaluate.Painted(images, read, read % 5)


def test_pictures_come_back_as_they_were_kept(tmp_path):
    """Planted faults: split or decoding mixed up; the examples of a row; rows for columns; as many
    examples expected in every split (a small one may lack some).
    """
    cell = tiny()
    run = open_run(cell, "evaluation", tmp_path)
    kept = {split: {"scene": [0, 1, 2]} for split in ("test", "test_seen")}
    painted = {(split, decoding): few(40 * i + 20 * j, 4 - i) for i, split in enumerate(kept)
               for j, decoding in enumerate(("sampled", "greedy"))}
    evaluate.save_examples(run, kept, painted)
    assert evaluate.load_examples(cell, "test", tmp_path) is None  # the evaluation has not finished
    run.finish({})
    for (split, decoding), part in painted.items():
        found = evaluate.load_painted(cell, split, tmp_path, [2, 0], decoding)
        assert torch.allclose(found.images, part.images[[2, 0]], atol=1e-6)
        assert (found.label == part.label[[2, 0]]).all()
        assert (found.colour == part.colour[[2, 0]]).all() and found.label.dtype == np.uint8
    assert evaluate.load_painted(cell, "val", tmp_path, [0]) is None
    assert evaluate.load_examples(cell, "test", tmp_path)["scene"] == [0, 1, 2]
    (run.folder / evaluate.PICTURES).unlink()
    assert evaluate.load_painted(cell, "test", tmp_path, [0]) is None


def test_the_first_scenes_of_every_case():
    case = np.array([4, 0, 0, 1, 2, 3] + [0, 1, 2, 3, 4] * 4)
    found = evaluate.first_of_each_case(case)
    assert case[found].tolist() == sorted(case[found].tolist()) == [k for k in range(5)
                                                                    for _ in range(4)]
    assert found[:4].tolist() == [1, 2, 6, 11] and found[-4:].tolist() == [0, 10, 15, 20]


def test_a_point_is_a_mean_over_the_seeds_that_have_both_numbers():
    """Planted faults: x of one seed beside the mean y of all; plan and earlier seeds joined; a
    point of few seeds that does not say so."""
    ran = pd.DataFrame({"variant": "te", "planned": [False, False, False, True],
                        "nats": [100.0, np.nan, 140.0, 90.0], "official": [0.8, 0.2, 0.9, 0.7]})
    names = functions_of("08_why", ran=ran)
    figure, axes = style.new()
    names["points"](axes[0, 0], "nats", "official", say=True)
    drawn = {bool(len(spot.get_facecolor())): spot.get_offsets()[0].tolist()
             for spot in axes[0, 0].collections}
    assert {plan: [round(x, 9) for x in at] for plan, at in drawn.items()} == {
        False: [120.0, 0.85], True: [90.0, 0.7]}
    assert {text.get_text() for text in axes[0, 0].texts} == {
        "te (plan)", "te (before), 2 of 3 seeds"}


def test_a_name_covers_neither_a_point_nor_another_name():
    """All arms in three crowds. Planted faults: names left where they were first; points ignored;
    names out of the panel."""
    random = np.random.default_rng(0)
    centre = np.repeat([[100, 0.7], [150, 0.8], [300, 0.9]], 10, axis=0)
    places = centre + random.normal(0, (10, 0.01), (30, 2))
    ran = pd.DataFrame({"variant": [*why.GROUP_OF], "planned": True, "bits": places[:, 0],
                        "official": places[:, 1]})
    names = functions_of("08_why", ran=ran)
    figure, axes = style.new(1, 2, 12, 4.8)
    axis = axes[0, 0]
    names["points"](axis, "bits", "official")
    names["key"](figure, "")
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    dots = axis.transData.transform(places)
    assert len(boxes) == 30 and not any(box.contains(*dot) for box in boxes for dot in dots)
    assert sum(box.count_overlaps(boxes) for box in boxes) == len(boxes)  # each with itself
    assert all(axis.bbox.contains(*end) for box in boxes for end in (box.min, box.max))
