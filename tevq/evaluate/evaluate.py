"""Evaluation of one (variant, seed) on the test splits: the numbers behind every table.

Two kinds of run: `quantizer` needs Stage 1 only (Table 3, equivariance, ceilings), `evaluation`
needs both stages (Tables 1 and 2). Both keep rows in `summary.json` with the counts behind every
share; `evaluation` also keeps counts per scene (`scenes.csv.gz`) and examples (see `examples`).
"""

from __future__ import annotations

import gzip
import time

import torch

from tevq.config import Settings
from tevq.data.scenes import CASES, Scenes, load_items, render
from tevq.evaluate import equivariance, examples
from tevq.evaluate.evaluator import CHUNK, Evaluator, encoded_split, join_scores, split_of
from tevq.evaluate.metrics import DECODINGS, SPLITS, Score, by_case
from tevq.models import losses, transformer
from tevq.models.quantizer import codebook_health
from tevq.runs import devices
from tevq.runs.run import Run, open_run, parents
from tevq.runs.storage import write_atomically

PROBE_ITEMS = 100  # items drawn for the equivariance measures, at most


def evaluate_quantizer(settings: Settings, results=None) -> Run:
    """Stage 1 on the test splits; returns its run.

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
        examples.save(run, kept, painted)
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
    counts = torch.zeros(settings.stage1.codes, dtype=torch.long)
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
            for row in _rows(join_scores(parts), scenes, split=split, task=task, decoding="")]
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
    chosen = examples.first_of_each_case(scenes.case)
    kept = {"scene": chosen.tolist(), "truth": truth[chosen].tolist()}
    columns = {"split": [split] * len(scenes), "scene": range(len(scenes)),
               "case": [CASES[case] for case in scenes.case]}

    def count(scores: dict[str, Score], task: str, decoding: str) -> None:
        rows.extend(_rows(scores, scenes, split=split, task=task, decoding=decoding))
        for metric, score in scores.items():
            for part, values in zip(("correct", "n"), score, strict=True):
                columns[f"{task}_{decoding}_{metric}_{part}"] = values.astype(int)

    for decoding in DECODINGS:
        greedy = decoding == "greedy"
        if settings.stage2.directions != "i2t":
            codes = evaluator.text_to_image(model, scenes.caption, options, seed, greedy)
            count(evaluator.score_codes(codes, scenes), "t2i", decoding)
            kept[f"t2i_{decoding}"] = codes[chosen].tolist()
            painted[split, decoding] = examples.paint(evaluator, codes[chosen], scenes.take(chosen))
        if settings.stage2.directions != "t2i":
            texts = evaluator.image_to_text(model, truth, options, seed, greedy)
            count(evaluator.score_texts(texts, scenes), "i2t", decoding)
            kept[f"i2t_{decoding}"] = [texts[i] for i in chosen]
    return columns, kept


def _rows(scores: dict[str, Score], scenes: Scenes, **labels) -> list[dict]:
    """One row per case and metric; cases without anything to count are left out."""
    table = by_case(scores, scenes.case, CASES)
    return [labels | {"case": case, "metric": metric, "value": score.value,
                      "correct": score.correct, "n": score.n}
            for case, metrics in table.items() for metric, score in metrics.items() if score.n]
