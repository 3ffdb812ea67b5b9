"""Evaluation of one (variant, seed) on the test splits: the numbers behind every table.

Two kinds of run: `quantizer` needs Stage 1 only (Table 3, equivariance, ceilings), `evaluation`
needs both stages (Tables 1 and 2). Both keep rows in `summary.json` with the counts behind every
share. `evaluation` also keeps counts per scene (`scenes.csv.gz`) and what was painted and written
for the first scenes of every case, chosen before any result was seen: `examples.json.gz` has codes,
captions and what the classifier reads, `examples.png` the painted images, one row per split and
decoding, so that figures need no trained weights.
"""

import gzip
import io
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from tevq.config import Settings
from tevq.data.scenes import CASES, Scenes, load_items, render
from tevq.evaluate import equivariance
from tevq.evaluate.evaluator import CHUNK, Evaluator, encoded_split, join_scores, split_of
from tevq.evaluate.metrics import DECODINGS, SPLITS, Score, by_case, read_places
from tevq.models import losses, transformer
from tevq.models.quantizer import codebook_health
from tevq.runs import devices
from tevq.runs.run import Run, open_run, parents
from tevq.runs.storage import write_atomically

PROBE_ITEMS = 100  # items drawn for the equivariance measures, at most
PER_CASE = 4  # examples kept of every case
RECORD, PICTURES = "examples.json.gz", "examples.png"


def evaluate_quantizer(settings: Settings, results=None) -> Run:
    """Stage 1 on the test splits; its equivariance on items of all test images; returns its run.

    Summary: `rows` (split, task, case, metric, value, correct, n) with tasks `ceiling-real` and
    `ceiling-reconstruction`; `reconstruction` (split, l1 in [0, 1], perceptual, codes_used,
    perplexity); `equivariance`, `merged` and `sweep` rows as in equivariance.py.
    """
    run = open_run(settings, "quantizer", results)
    with run.lock():
        if run.done:
            return run
        began = time.monotonic()
        evaluator = _begin(run, settings, results, "classifier", "stage1")
        found = [_reconstruction(settings, evaluator, split) for split in SPLITS]
        count = min(PROBE_ITEMS, settings.data.test // 5)
        probe = equivariance.Probe(load_items(settings.data, "test"), count, settings.data.seed,
                                   evaluator.device)
        compared = equivariance.compare(evaluator.vqgan, probe)
        run.finish({
            "rows": [row for rows, _ in found for row in rows],
            "reconstruction": [line for _, line in found],
            "equivariance": equivariance.measure(compared),
            "merged": equivariance.merged(compared, evaluator.vqgan.quantizer.table()),
            "sweep": equivariance.sweep(evaluator.vqgan, probe),
            "seconds": time.monotonic() - began})
    return run


def evaluate(settings: Settings, results=None) -> Run:
    """Both directions on the test splits; returns its run.

    Summary rows: split, task (t2i, i2t), decoding (sampled, greedy), case, metric, value, correct,
    n. Both directions are sampled as officially, and once more greedy.
    """
    run = open_run(settings, "evaluation", results)
    with run.lock():
        if run.done:
            return run
        began = time.monotonic()
        evaluator = _begin(run, settings, results, "classifier", "stage1", "stage2")
        model = transformer.load(settings, results, evaluator.device)
        rows, lines, kept, painted = [], [], {}, {}
        for split in SPLITS:
            columns, kept[split] = _both_directions(settings, evaluator, model, split, results,
                                                    rows, painted)
            lines = lines or [",".join(columns)]
            lines += [",".join(map(str, line)) for line in zip(*columns.values(), strict=True)]
            print(f"{run.name}: {split} done", flush=True)
        # compressed to a twentieth; the same counts give the same bytes
        text = "\n".join([*lines, ""]).encode()
        write_atomically(run.folder / "scenes.csv.gz", gzip.compress(text, mtime=0))
        save_examples(run, kept, painted)
        run.finish({"rows": rows, "seconds": time.monotonic() - began})
    return run


def _begin(run: Run, settings: Settings, results, *kinds: str) -> Evaluator:
    """Everything is evaluated in float32, so that a result does not depend on batches."""
    where = devices.detect("float32")
    evaluator = Evaluator.load(settings, results, where.device)
    run.start(where, parents(settings, *kinds, results=results))
    return evaluator


def _reconstruction(settings: Settings, evaluator: Evaluator, split: str
                    ) -> tuple[list[dict], dict]:
    """Ceiling rows of a split, and one line for Table 3."""
    scenes, items = split_of(settings, split)
    name, n = settings.stage1.perceptual, len(scenes)
    perceptual = losses.perceptual_loss(name, evaluator.classifier, evaluator.device)
    counts = torch.zeros(settings.stage1.K, dtype=torch.long)
    l1, distance, scores = [], [], {"ceiling-real": [], "ceiling-reconstruction": []}
    for start in range(0, n, CHUNK):
        part = scenes.take(slice(start, start + CHUNK))
        x = render(part, items).to(evaluator.device)
        y, codes = evaluator.vqgan.reconstruct(x)
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        l1.append(float((x - y).abs().mean()) / 2 * len(x))
        with torch.no_grad():
            distance.append(float(perceptual(x, y)) * len(x))
        for parts, images in zip(scores.values(), (x, y), strict=True):
            parts.append(evaluator.score_images(images, part))
    rows = [row for task, parts in scores.items()
            for row in case_rows(join_scores(parts), scenes, split=split, task=task, decoding="")]
    line = {"split": split, "l1": sum(l1) / n, "perceptual": sum(distance) / n,
            "perceptual_name": name, "n": n}
    return rows, line | codebook_health(evaluator.vqgan.quantizer.table(), counts)


def _both_directions(settings: Settings, evaluator: Evaluator, model, split: str, results,
                     rows: list[dict], painted: dict) -> tuple[dict, dict]:
    """Columns of counts per scene, and the record of the examples of one split.

    Appends rows per case to `rows`, and puts the examples' images into `painted`.
    """
    options, seed = settings.evaluation, settings.seed
    scenes, _ = split_of(settings, split, options.scenes)
    truth = encoded_split(settings, split, evaluator, results)[: len(scenes)].long()
    chosen = first_of_each_case(scenes.case)
    kept = {"scene": chosen.tolist(), "truth": truth[chosen].tolist()}
    columns = {"split": [split] * len(scenes), "scene": range(len(scenes)),
               "case": [CASES[case] for case in scenes.case]}

    def count(scores: dict[str, Score], task: str, decoding: str) -> None:
        rows.extend(case_rows(scores, scenes, split=split, task=task, decoding=decoding))
        for metric, score in scores.items():
            for part, values in zip(("correct", "n"), score, strict=True):
                columns[f"{task}_{decoding}_{metric}_{part}"] = values.astype(int)

    for decoding in DECODINGS:
        greedy = decoding == "greedy"
        if settings.stage2.directions != "i2t":
            codes = evaluator.text_to_image(model, scenes.caption, options, seed, greedy)
            count(evaluator.score_codes(codes, scenes), "t2i", decoding)
            kept[f"t2i_{decoding}"] = codes[chosen].tolist()
            painted[split, decoding] = painted_by(evaluator, codes[chosen], scenes.take(chosen))
        if settings.stage2.directions != "t2i":
            texts = evaluator.image_to_text(model, truth, options, seed, greedy)
            count(evaluator.score_texts(texts, scenes), "i2t", decoding)
            kept[f"i2t_{decoding}"] = [texts[i] for i in chosen]
    return columns, kept


def case_rows(scores: dict[str, Score], scenes: Scenes, **labels) -> list[dict]:
    """One row per case and metric; cases without anything to count are left out."""
    table = by_case(scores, scenes.case, CASES)
    return [labels | {"case": case, "metric": metric, "value": score.value,
                      "correct": score.correct, "n": score.n}
            for case, metrics in table.items() for metric, score in metrics.items() if score.n]


class Painted(NamedTuple):
    """Images that a generator painted, and what the classifier reads at every named place."""

    images: torch.Tensor  # (n, 3, S, S) in [-1, 1]
    label: np.ndarray  # (n, 4), 255 = unused
    colour: np.ndarray


def first_of_each_case(case: np.ndarray, count: int = PER_CASE, cases: int = len(CASES)
                       ) -> np.ndarray:
    """Positions (n,) of the first `count` scenes of every case, in the order of the cases."""
    return np.concatenate([np.flatnonzero(case == i)[:count] for i in range(cases)])


def painted_by(evaluator: Evaluator, codes: torch.Tensor, scenes: Scenes) -> Painted:
    """Codes (n, h, w) painted for `scenes` as images, and what is read in them."""
    images = evaluator.decode(codes)
    return Painted(images.cpu(), *read_places(images, scenes.place, evaluator.classifier.predict))


def save_examples(run: Run, found: dict[str, dict[str, Any]],
                  painted: dict[tuple[str, str], Painted]) -> None:
    """Writes RECORD and PICTURES. `found`: per split; `painted`: per split and decoding."""
    for (split, decoding), part in painted.items():
        found[split] |= {f"t2i_{decoding}_label": part.label.tolist(),
                         f"t2i_{decoding}_colour": part.colour.tolist()}
    tree = {"rows": list(painted), "splits": found}
    write_atomically(run.folder / RECORD, gzip.compress(json.dumps(tree).encode(), mtime=0))
    if painted:
        rows = pad_sequence([part.images for part in painted.values()], batch_first=True,
                            padding_value=-1)  # (rows, n, 3, S, S); a small split lacks some
        sheet = ((rows.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 3, 1, 4, 2)
        # with 256 colours: half the bytes, and the eye sees no difference
        picture = Image.fromarray(sheet.flatten(2, 3).flatten(0, 1).numpy()).quantize(
            256, dither=Image.Dither.NONE)
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        write_atomically(run.folder / PICTURES, file.getvalue())


def load_examples(settings: Settings, split: str, results: str | None) -> dict[str, Any] | None:
    """Codes, captions and readings of one split of a finished evaluation, or None."""
    tree = _read_record(open_run(settings, "evaluation", results))
    return tree and tree["splits"].get(split)


def load_painted(settings: Settings, split: str, results: str | None, index: Sequence[int],
                 decoding: str = "sampled") -> Painted | None:
    """What was painted for the examples at `index`, or None when there is no picture of it."""
    run = open_run(settings, "evaluation", results)
    tree, path = _read_record(run), run.folder / PICTURES
    if not tree or [split, decoding] not in tree["rows"] or not path.exists():
        return None
    with Image.open(path) as picture:
        sheet = torch.from_numpy(np.array(picture.convert("RGB")))
    size, index = settings.data.scene, list(index)
    top = tree["rows"].index([split, decoding]) * size
    row = sheet[top : top + size].view(size, -1, size, 3).permute(1, 3, 0, 2)  # (n, 3, S, S)
    read = [np.array(tree["splits"][split][f"t2i_{decoding}_{what}"], dtype=np.uint8)[index]
            for what in ("label", "colour")]
    return Painted(row[index].float() / 127.5 - 1, *read)


def _read_record(run: Run) -> dict[str, Any] | None:
    path = run.folder / RECORD
    return json.loads(gzip.decompress(path.read_bytes())) if run.done and path.exists() else None
