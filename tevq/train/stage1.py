"""Stage 1: trains the VQGAN or TE-VQGAN of one (variant, seed)."""

import math
import time

import torch
from torch import Tensor

from tevq.config import Settings, Stage1Config
from tevq.data import scenes
from tevq.models import classifier, losses
from tevq.models.quantizer import codebook_health, orthogonality
from tevq.models.vqgan import VQGAN
from tevq.runs import devices
from tevq.runs.run import Run, open_run, origin, parents
from tevq.train import regularizers as arms
from tevq.train.classifier import train as train_classifier
from tevq.train.cuda_graph import CudaGraph, set_rate
from tevq.train.loop import Batches, Loop, interruptible
from tevq.train.progress import Progress

LOG_EVERY = 20  # steps between lines of metrics.jsonl
KMEANS_VECTORS = 20_000  # encoder outputs from which the codes start


def train(settings: Settings, results=None) -> Run:
    """Trains the VQGAN of these settings, or finds it trained; returns its run.

    Trains the classifier first if there is none: every evaluation needs it; and the quantizer that
    another one starts from. Interrupted work goes on from the last checkpoint. Raises
    SettingsError on bad input and DivergedError when loss or gradient are no longer finite.
    """
    train_classifier(settings, results)
    if parent := origin(settings):
        train(parent, results)
    run = open_run(settings, "stage1", results)
    with run.lock(), interruptible():
        if not run.has_weights:
            Trainer(run, settings, devices.detect(settings.precision), results).train()
    return run


class Trainer:
    """One training: its data, its steps, and what is written down."""

    def __init__(self, run: Run, settings: Settings, where: devices.Device, results=None):
        self.run, self.settings, self.s = run, settings, arms.effective(settings.stage1)
        needed = ["classifier"] if self.s.perceptual == "classifier" else []
        network = classifier.load(settings, results, where.device) if needed else None
        items = scenes.load_items(settings.data, "train")
        run.start(where, parents(settings, *needed, results=results), items.sha256())
        self.items = items.to(where.device)
        self.scenes = scenes.load_scenes(settings.data, "train")
        self.batches = Batches(len(self.scenes.case), self.s.batch, settings.seed)
        devices.seed_everything(settings.seed)
        perceptual = losses.perceptual_loss(self.s.perceptual, network, where.device)
        self.learner = Learner(self.s, where, perceptual)
        self.model = self.learner.model
        arms.take_over(self.model, settings, results)
        self.usage = torch.nn.Module()  # a buffer, because it is part of the resumable state
        self.usage.register_buffer("counts", torch.zeros(self.s.K, device=where.device))
        self.usage.extras = self.learner.extras

    def train(self) -> None:
        """All steps, then the weights and a summary."""
        learner, s = self.learner, self.s
        self.loop = Loop(self.run, {
            "model": self.model, "critic": learner.discriminator, "usage": self.usage,
            "optimizer": learner.optimizer, "critic_optimizer": learner.discriminator_optimizer,
        }, s.steps, picture=self.picture)
        if self.loop.fresh:
            began = time.monotonic()
            self.init_codebook()
            self.loop.seconds = time.monotonic() - began
            self.loop.save(0)  # the warm-up and k-means are not done again
        update = CudaGraph(learner.update, learner.where)
        for step in self.loop:  # which saves, looks for divergence and stops in time
            for optimizer in (learner.optimizer, learner.discriminator_optimizer):
                set_rate(optimizer, s.lr * rate(s, step))
            adversarial = step >= s.disc_start and s.disc_weight > 0
            if adversarial and step == s.disc_start:
                self.loop.progress.say(f"step {step:,}, the discriminator starts")
            x = self.images(step)
            learner.extras.before(self.model, x, self.settings.seed, step)
            metrics, codes = update(x, adversarial)
            self.loop.watch(*metrics.values())
            self.usage.counts += count(codes, s.K)
            if (step + 1) % LOG_EVERY == 0 or step + 1 == s.steps:
                self.log(metrics)
        self.run.finish({"seconds": self.loop.seconds, "steps": s.steps,
                         "images": s.steps * self.batches.batch,
                         "perceptual_name": s.perceptual} | self.run.metrics()[-1],
                        self.model.state_dict())

    def init_codebook(self) -> None:
        """Start of the codes: as they are built (official), or k-means after a short warm-up.

        The warm-up trains encoder and decoder without quantization. Otherwise, at small budgets,
        the codebook collapses to a handful of codes before it has been learned.
        """
        if self.s.codebook_start == "uniform":
            return
        steps = self.s.warmup_steps
        progress = Progress(f"{self.run.name}: before the codes start", steps)
        autoencoder_step = CudaGraph(self.learner.autoencoder_step, self.learner.where)
        for step in range(steps):
            autoencoder_step(self.images(step))
            progress.step(step + 1)
        progress.say(f"{steps:,} steps")
        self.model.quantizer.init_codes(self.some_features(), self.settings.seed)

    @torch.no_grad()
    def some_features(self) -> Tensor:
        """Encoder outputs at random positions of the first batches, (KMEANS_VECTORS, D)."""
        found: list[Tensor] = []
        while sum(map(len, found)) < 2 * KMEANS_VECTORS:
            with self.learner.where.autocast():
                z = self.model.encode(self.images(len(found))).float()
            found.append(z.permute(0, 2, 3, 1).flatten(0, 2))  # (B h w, D)
        vectors, random = torch.cat(found), devices.generator(self.settings.seed, 1)
        return vectors[torch.randperm(len(vectors), generator=random)[:KMEANS_VECTORS]]

    def images(self, step: int) -> Tensor:
        """Batch (B, 3, S, S) of a step; in [-1, 1], channels last, on the device."""
        x = scenes.render(self.scenes, self.items, self.batches[step])
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def picture(self) -> tuple[Tensor, str]:
        """The first training scenes (upper row) and their reconstructions."""
        x = scenes.render(self.scenes, self.items, torch.arange(min(6, len(self.scenes.case))))
        with self.learner.where.autocast():
            y = self.model(x)[0]
        rows = [torch.cat(list(row), dim=2) for row in (x, y.float())]  # (3, S, 6 S) each
        return torch.cat(rows, dim=1), "training scenes, and below them their reconstructions"

    def log(self, metrics: dict[str, Tensor]) -> None:
        """One line of metrics: losses, and the health of the codebook since the last line."""
        codebook = self.model.quantizer.table().detach()
        health = codebook_health(codebook, self.usage.counts)
        self.usage.counts.zero_()
        self.loop.log(**metrics, **health, orthogonality=orthogonality(codebook))
        if health["codes_used"] < 3:
            self.loop.progress.say(f"step {self.loop.step + 1:,}, the codebook has collapsed to "
                                   f"{health['codes_used']} codes")


class Learner:
    """The networks with their optimizers, and one update of each. Images x are in [-1, 1]."""

    def __init__(self, s: Stage1Config, where: devices.Device, perceptual: losses.Perceptual):
        self.s, self.where, self.perceptual = s, where, perceptual
        to = {"device": where.device, "memory_format": torch.channels_last}
        self.model = VQGAN(s).to(**to)
        self.discriminator = losses.PatchDiscriminator(s.disc_channels, s.disc_layers).to(**to)
        self.extras = arms.Extras(s).to(where.device)
        self.optimizer, self.discriminator_optimizer = (
            torch.optim.Adam(net.parameters(), lr=s.lr, betas=(0.5, 0.9), fused=True,
                             capturable=where.device.type == "cuda")
            for net in (torch.nn.ModuleList((self.model, self.extras)), self.discriminator))

    def update(self, x: Tensor, adversarial: bool) -> tuple[dict, Tensor]:
        """One update of all networks, of the discriminator only if `adversarial`.

        x (B, 3, H, W) -> metrics (scalars on the device), codes (B, h, w).
        """
        metrics, y, codes = self.generator_step(x, adversarial)
        if adversarial:
            metrics |= self.discriminator_step(x, y)
        return {name: value.detach() for name, value in metrics.items()}, codes

    def generator_step(self, x: Tensor, adversarial: bool = False) -> tuple[dict, Tensor, Tensor]:
        """One update of encoder, decoder and codebook. Returns metrics, reconstruction, codes."""
        with self.where.autocast():
            y, quantized = self.model(x)
            loss, metrics = self.reconstruction_loss(x, y)
            extra = self.extras.loss(self.model, x, quantized, self.reconstruction_loss)
            if adversarial:
                self.discriminator.requires_grad_(False)
                adversarial_loss = -self.discriminator(y).float().mean()
        if adversarial:
            weight = losses.adaptive_weight(loss, adversarial_loss, self.model.decoder[-1].weight)
            loss = loss + self.s.disc_weight * weight * adversarial_loss
            metrics |= {"adaptive_weight": weight, "adversarial": adversarial_loss}
        loss = loss + quantized.codebook_loss + self.s.beta * quantized.commitment_loss + extra
        if self.s.orthogonality > 0:
            codebook = self.extras.penalised(self.model.quantizer.table())
            loss = loss + self.s.orthogonality * orthogonality(codebook)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), math.inf)  # clips nothing
        self.optimizer.step()
        self.extras.after(self.model, quantized.codes)
        metrics |= {"loss": loss, "gradient_norm": norm, "commitment": quantized.commitment_loss}
        return metrics, y.detach(), quantized.codes

    def reconstruction_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict]:
        """L1 in [-1, 1] plus the weighted perceptual distance; both for the log, too."""
        l1 = (x - y.float()).abs().mean()
        perceptual = self.perceptual(x, y)
        # halved for the log: Table 3 counts in [0, 1]
        return l1 + self.s.perceptual_weight * perceptual, {"l1": l1 / 2, "perceptual": perceptual}

    def discriminator_step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """One update of the discriminator on images x and their reconstructions y; metrics."""
        self.discriminator.requires_grad_(True)
        with self.where.autocast():
            real, fake = self.discriminator(x).float(), self.discriminator(y).float()  # logits
        loss = losses.hinge_loss(real, fake)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimizer.step()
        return {"critic_loss": loss, "real_logits": real.mean(), "fake_logits": fake.mean()}

    def autoencoder_step(self, x: Tensor) -> None:
        """One update of encoder and decoder without quantization."""
        with self.where.autocast():
            y = self.model.decoder(self.model.encode(x))
            loss, _ = self.reconstruction_loss(x, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def rate(s: Stage1Config, step: int) -> float:
    """Share of the learning rate: constant (official), or a cosine to a tenth."""
    return 0.55 + 0.45 * math.cos(math.pi * step / s.steps) if s.decay else 1.0


def count(codes: Tensor, K: int) -> Tensor:
    """How often each of K codes was chosen, float32 (K,). (`bincount` would wait for a GPU.)"""
    ones = torch.ones(codes.numel(), device=codes.device)
    return torch.zeros(K, device=codes.device).index_add_(0, codes.flatten(), ones)
