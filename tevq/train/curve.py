"""The learning curve of Stage 2: what the generator paints and writes while it learns."""

import math

from tevq.config import Settings
from tevq.evaluate.evaluator import Evaluator, case_values, encode_scenes, mean_nats, split_of
from tevq.models.transformer import Transformer
from tevq.runs import devices

TASKS = {"both": ("t2i", "i2t"), "t2i": ("t2i",), "i2t": ("i2t",)}  # by stage2.directions
SPLITS = ("val", "val_seen")  # held-out and seen combinations
GREEDY = "t2i_greedy"  # the task of greedy images, where `until` is set


class Curve:
    """Points of the learning curves of one training."""

    def __init__(self, settings: Settings, evaluator: Evaluator, where: devices.Device):
        self.settings, self.evaluator, self.where = settings, evaluator, where
        self.probes = {split: split_of(settings, split, settings.stage2.probe_scenes)
                       for split in SPLITS}

    def points(self, model: Transformer) -> list[dict]:
        """Digit accuracy per case on validation scenes, by split and trained direction.

        Images are sampled, captions greedy. Text->image also has the `nats` of the true codes of an
        image, which change before any digit is right; with `until`, also a point of greedy images.
        """
        s, judge, points = self.settings, self.evaluator, []
        model.eval()
        for split, (scenes, items) in self.probes.items():
            def paint(greedy: bool, scenes=scenes) -> dict[str, float]:
                codes = judge.text_to_image(model, scenes.caption, s.evaluation, s.seed, greedy)
                return case_values(judge.score_codes(codes, scenes), scenes, "digit")

            truth = encode_scenes(judge.vqgan, scenes, items, self.where).long()
            found = {}
            for task in TASKS[s.stage2.directions]:
                if task == "t2i":
                    found[task] = {"nats": mean_nats(model, scenes.caption, truth)} | paint(False)
                else:
                    texts = judge.image_to_text(model, truth, s.evaluation, s.seed, True)
                    found[task] = case_values(judge.score_texts(texts, scenes), scenes, "digit")
            if s.stage2.until:
                found[GREEDY] = paint(True)
            points += [{"probe": split, "task": task, "n": len(scenes)} | values
                       for task, values in found.items()]
        model.train()
        return points


def learned(point: dict, until: float) -> bool:
    """Whether a point reaches `until`: greedy images of seen combinations, mean of Quad1-4."""
    values = [point.get(f"quad{n}", 0.0) for n in (1, 2, 3, 4)]
    return 0 < until <= sum(values) / 4 and (point["probe"], point["task"]) == ("val_seen", GREEDY)


def falling_end(step: int, warmup: int) -> int:
    """Total steps of a training whose schedule `linear` begins to fall at `step`."""
    return warmup + math.ceil(max(1, step - warmup) / 0.6)
