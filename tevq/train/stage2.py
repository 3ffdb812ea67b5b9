"""Stage 2: trains the generator of one (variant, seed) on the codes of its VQGAN."""

import math
from functools import partial

import torch
from torch import Tensor

from tevq.config import Settings, Stage2Config
from tevq.data.scenes import fresh_captions
from tevq.data.source import class_names
from tevq.evaluate.evaluator import Evaluator, encoded_split, split_of
from tevq.models.transformer import Transformer, build
from tevq.runs import devices
from tevq.runs.run import Run, open_run, parents
from tevq.train.cuda_graph import CudaGraph, set_rate
from tevq.train.curve import Curve, falling_end, learned
from tevq.train.loop import Batches, Loop, interruptible
from tevq.train.muon import Muon, block_matrices

LOG_EVERY = 23  # steps between lines of metrics.jsonl; prime, so that both directions show
LOGGED = ("loss", "text_loss", "image_loss")


def train(settings: Settings, results=None) -> Run:
    """Trains the generator of these settings, or finds it trained; returns its run.

    Needs the trained VQGAN (SettingsError otherwise). Interrupted work goes on from the last
    checkpoint. Raises DivergedError when loss or gradient are no longer finite.
    """
    run = open_run(settings, "stage2", results)
    with run.lock(), interruptible():
        if not run.has_weights:
            Trainer(run, settings, devices.detect(settings.precision), results).train()
    return run


class Trainer:
    """One training: its data, its steps, and what is written down."""

    def __init__(self, run: Run, settings: Settings, where: devices.Device, results=None):
        self.run, self.settings, self.s, self.where = run, settings, settings.stage2, where
        self.evaluator = Evaluator.load(settings, results, where.device)
        scenes, items = split_of(settings, "train")
        open_run(settings, "stage1", results).check_source(items.sha256())
        run.start(where, parents(settings, "classifier", "stage1", results=results), items.sha256())
        codes = encoded_split(settings, "train", self.evaluator, results)
        self.codes = codes.to(where.device)
        self.scenes = scenes.take(slice(0, len(codes)))
        self.epoch, self.captions = -1, torch.from_numpy(self.scenes.caption).to(where.device)
        self.batches = Batches(len(codes), self.s.batch, settings.seed)
        devices.seed_everything(settings.seed)
        self.model = build(settings, where.dtype).to(where.device)
        self.optimizers = build_optimizers(self.model, self.s)
        self.update = CudaGraph(partial(update, self.model, self.optimizers, self.s), where)
        self.curve = Curve(settings, self.evaluator, where)
        self.end = torch.nn.Module()  # a buffer, because `until` makes it part of the state
        self.end.register_buffer("steps", torch.tensor(self.s.steps))

    def train(self) -> None:
        """All steps, then the weights and a summary."""
        s, peaks = self.s, {"muon": self.s.muon_lr, "adam": self.s.lr}
        loop = Loop(self.run, {"model": self.model} | self.optimizers
                    | ({"end": self.end} if s.until else {}), s.steps, picture=self.picture)
        loop.total = int(self.end.steps)
        for step in loop:
            share = schedule(s.schedule, step, loop.total, s.warmup_steps)
            for name, optimizer in self.optimizers.items():
                set_rate(optimizer, peaks[name] * share)
            direction, metrics = self.step(step)
            loop.watch(*metrics.values())
            last, sequences = step + 1 == loop.total, (step + 1) * self.batches.batch
            if (step + 1) % LOG_EVERY == 0 or last:
                loop.log(direction=direction, sequences=sequences,
                         **{name: metrics[name] for name in LOGGED})
            if s.probe_scenes and ((step + 1) % s.probe_every == 0 or last):
                for point in self.curve.points(self.model):
                    loop.log(**point, sequences=sequences)
                    if loop.total == s.steps and learned(point, s.until):
                        loop.total = min(s.steps, falling_end(step + 1, s.warmup_steps))
                        self.end.steps.fill_(loop.total)
        self.run.finish({"seconds": loop.seconds, "steps": loop.total,
                         "sequences": loop.total * self.batches.batch,
                         "training_scenes": self.batches.n,
                         "parameters": sum(p.numel() for p in self.model.parameters())},
                        self.model.state_dict())

    def step(self, step: int) -> tuple[str, dict[str, Tensor]]:
        """One update in one direction: the direction, and what `update` returns."""
        direction = direction_of(step, self.s)
        index = self.batches[step].to(self.where.device, non_blocking=True)
        if self.s.captions == "fresh" and self.epoch != self.batches.epoch:
            self.epoch, seed = self.batches.epoch, self.settings.seed
            classes = len(class_names(self.settings.data.source))
            written = fresh_captions(self.scenes, classes, seed, self.epoch)
            self.captions = torch.from_numpy(written).to(self.where.device)
        text, codes = self.captions[index].long(), self.codes[index].long()
        return direction, self.update(text, codes, direction)

    def picture(self) -> tuple[Tensor, str]:
        """Four training captions, painted."""
        captions = self.scenes.caption[:4]
        self.model.eval()
        codes = self.evaluator.text_to_image(self.model, captions, self.settings.evaluation,
                                             self.settings.seed)
        self.model.train()
        read = "<br>".join(map(self.evaluator.tokenizer.decode, captions))
        return torch.cat(list(self.evaluator.decode(codes)), dim=2), f"captions, painted<br>{read}"


def direction_of(step: int, s: Stage2Config) -> str:
    """Direction of a step: "t2i" while fewer than `t2i_share` of all steps, this one too, were."""
    if s.directions != "both":
        return s.directions
    return "t2i" if math.ceil((step + 1) * s.t2i_share) > math.ceil(step * s.t2i_share) else "i2t"


def update(model: Transformer, optimizers: dict[str, torch.optim.Optimizer], s: Stage2Config,
           text: Tensor, codes: Tensor, direction: str) -> dict[str, Tensor]:
    """One step of all optimizers on captions (B, L) and codes (B, h, w); metrics."""
    loss = model.loss(text, codes, direction, s.target_weight)
    model.zero_grad(set_to_none=True)
    loss.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip or math.inf)
    for optimizer in optimizers.values():
        optimizer.step()
    return {"loss": loss.total.detach(), "text_loss": loss.text, "image_loss": loss.image,
            "gradient_norm": norm}


def build_optimizers(model: Transformer, s: Stage2Config) -> dict[str, torch.optim.Optimizer]:
    """Adam for everything (official), or Muon for the blocks' matrices and Adam for the rest."""
    matrices, rest = block_matrices(model)
    adam = partial(torch.optim.Adam, lr=s.lr, betas=(0.9, s.beta2), fused=True,
                   capturable=matrices[0].device.type == "cuda")
    if s.optimizer == "adam":
        return {"adam": adam(matrices + rest)}
    return {"muon": Muon(matrices, s.muon_lr, dtype=model.dtype), "adam": adam(rest)}


def schedule(name: str, step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step.

    After a linear warm-up: `constant`; `linear`, constant and then down to zero over the last
    40 %; `restarts`, a cosine with six hard restarts (official).
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if name == "linear":
        return min(1.0, (1 - progress) / 0.4)
    if name == "restarts":
        return 0.5 * (1 + math.cos(math.pi * (6 * progress % 1)))
    return 1.0
