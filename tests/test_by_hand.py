"""Numbers of the paper, of its official code and ours, written out here and worked out anew.

Nothing that is compared is imported: a constant that is changed, or a term that is dropped, doubled
or put elsewhere, fails here. `test_notices.py` says which test is for which constant.
"""

import copy
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from small import tiny
from torch.nn import functional as F

from tevq import presets
from tevq.config import DataConfig
from tevq.data import captions, render, scenes
from tevq.data.source import SourceImages, class_names, load_source
from tevq.evaluate import metrics
from tevq.models import classifier as networks
from tevq.models import losses, quantizer, sampling, transformer, vqgan
from tevq.report import stats
from tevq.runs import devices
from tevq.runs.run import open_run
from tevq.train import classifier, muon, stage1, stage2

CPU = devices.Device(torch.device("cpu"), torch.float32)
PIXELS = {"white": (1, 1, 1), "red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1)}
WORDS = "zero one two three four five six seven eight nine".split()
NEVER_TRAINED = """zero white upper left, one red upper right, two green lower left,
three blue lower right, four red upper left, five green upper right, six blue lower left,
seven white lower right, eight green upper left, nine blue upper right"""
DATA = DataConfig(source="digits", train=400, val=200, test=200)


def close(found, wanted, rtol=1e-4, atol=1e-6):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


# ---------------------------------------------------------------------------- scenes, captions


@pytest.fixture(scope="module")
def alone():
    """{split: (text, image, digit) of every scene with one item}."""
    found = defaultdict(list)
    for split in ("train", "val", "test", "test_seen"):
        items = load_source("digits", scenes.part_of(split))
        made = scenes.build(DATA, split, items.labels.numpy())
        index = np.flatnonzero(np.isin(made.case, (0, 4)))
        words = captions.Tokenizer(class_names("digits"))
        for i, image in zip(index, scenes.render(made, items, index), strict=True):
            found[split].append((words.decode(made.caption[i]), image,
                                 int(items.labels[made.item[i, 0]])))
    return found


def place_of(text: str) -> str:
    """By words alone."""
    if "center" in text or "middle" in text:
        return "center"
    up, left = "upper" in text or "top" in text, " left" in text
    return f"{'upper' if up else 'lower'} {'left' if left else 'right'}"


def test_the_words_of_a_caption_are_what_is_seen(alone):
    """Colour in RGB, place in pixels, digit by its item. Planted fault: two colours swapped."""
    seen = set()
    for rows in alone.values():
        for text, image, digit in rows:
            colour, = (word for word in PIXELS if f" {word} " in f" {text} ")
            lit = image.amax((1, 2)) > -1  # channels with ink
            assert lit.tolist() == [level > 0 for level in PIXELS[colour]], text
            row, column = (image.amax(0) > -1).nonzero().float().mean(0).tolist()
            wanted = {"upper left": (16, 16), "upper right": (16, 48), "lower left": (48, 16),
                      "lower right": (48, 48), "center": (32, 32)}[place_of(text)]
            assert abs(row - wanted[0]) < 6 and abs(column - wanted[1]) < 6, text
            assert f" {WORDS[digit]}" in text
            seen.add((colour, place_of(text)))
    assert len(seen) == 4 * 5


def test_items_are_28_pixels_two_from_the_edges_of_their_cell():
    item = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    where = {(0, 0): (2, 2), (0, 1): (2, 34), (1, 0): (34, 2), (1, 1): (34, 34)}
    for place, (top, left) in enumerate(where.values()):
        one = scenes.Scenes(*(np.array([[v, *[u] * 3]], dtype=kind) for v, u, kind in (
            (0, -1, np.int32), (0, 255, np.uint8), (0, 255, np.uint8), (place, 255, np.uint8))),
            np.zeros(1, np.uint8), np.zeros((1, 41), np.uint8))
        image = scenes.render(one, SourceImages(item, torch.zeros(1, dtype=torch.long)))[0]
        wanted = torch.full((3, 64, 64), -1.0)
        wanted[:, top : top + 28, left : left + 28] = 1
        assert torch.equal(image, wanted)
        crop = render.crop(image[None], torch.tensor([place]))
        assert crop.shape == (1, 3, 28, 28) and (crop == 1).all()


def test_held_out_combinations_are_the_ten_written_here(alone):
    """Tests ask for nothing else, training and `_seen` for anything else."""
    held = [line.split() for line in NEVER_TRAINED.split(",")]
    held = {(digit, colour, f"{up} {side}") for digit, colour, up, side in held}
    found = {split: {(WORDS[digit], next(c for c in PIXELS if f" {c} " in f" {text} "),
                      place_of(text)) for text, _, digit in rows if place_of(text) != "center"}
             for split, rows in alone.items()}
    assert found["val"] | found["test"] == held and len(held) == 10
    assert not held & (found["train"] | found["test_seen"])


def test_the_grammar_is_the_one_written_here():
    words = """<pad> <bos> <eos> , . the a is on in at has shows holds and while also upper top
        lower bottom left right center middle white red green blue"""
    assert captions.vocabulary(WORDS) == (*words.split(), *WORDS)
    clause = captions.Clause(0, 3, 9)  # upper left, blue, nine: all 16 captions of one item
    shapes = """the P is C; the C is on the P; the P has a C; the P shows a C; a C is in the P;
        on the P is a C; C at the P; the P holds C"""
    wanted = {f"{shape.strip()}.".replace("C", "blue nine").replace("P", place)
              for shape in shapes.split(";") for place in ("upper left", "top left")}
    assert set(captions.paraphrases([clause], 16, 0, tuple(WORDS))) == wanted
    two = [clause, captions.Clause(3, 0, 2)]
    texts = captions.paraphrases(two, 300, 0, tuple(WORDS))
    assert {text[text.index(","):].split()[0] + " " + text[text.index(","):].split()[1]
            for text in texts} >= {", and", ", while", ", also"}
    assert captions.Tokenizer(WORDS).length == 41  # 4 clauses of 8 words, 3 links of 2, 3 more


# ------------------------------------------------------------------------- Stage 1: its losses


@pytest.fixture
def learner():
    """Small networks before their first update, images, and copies for the second route."""
    torch.manual_seed(0)
    s = presets.load("smoke", "te", 0, {
        "stage1.channels": 4, "stage1.codes": 6, "stage1.code_dim": 8, "stage1.disc_channels": 4,
        "stage1.disc_layers": 1, "stage1.lr": 0.01}).stage1
    found = stage1.Learner(s, CPU, lambda x, y: (x - y.float()).square().mean())
    torch.nn.init.normal_(found.model.quantizer.codebook)
    return found, torch.rand(2, 3, 32, 32) * 2 - 1, copy.deepcopy(found)


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_loss_of_stage1_and_every_gradient(learner, adversarial):
    """Planted faults: 0.25 on the codebook's term; a term left out; clipping; a hinge of 0."""
    found, x, other = learner
    numbers, codes = found.update(x, adversarial)
    model, critic = other.model, other.discriminator
    z = model.encoder(x)
    vectors, book = z.permute(0, 2, 3, 1).reshape(-1, 8), model.quantizer.codebook
    nearest = torch.cdist(vectors, book).argmin(1)
    assert torch.equal(codes.flatten(), nearest) and len(nearest.unique()) > 1
    chosen = book[nearest]
    q = (vectors + (chosen - vectors).detach()).view(2, 8, 8, 8).permute(0, 3, 1, 2)
    y = model.decoder(q)
    loss = (x - y).abs().mean() + 0.2 * (x - y).square().mean()
    if adversarial:
        fooled, last = -critic(y).mean(), model.decoder[-1].weight
        norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm()
                 for part in (loss, fooled)]
        loss = loss + 0.8 * (norms[0] / (norms[1] + 1e-4)).detach() * fooled
    unit = book / book.square().sum(1, keepdim=True).sqrt()
    loss = (loss + (chosen - vectors.detach()).square().mean()
            + 0.25 * (chosen.detach() - vectors).square().mean()
            + 10 * (unit @ unit.T - torch.eye(6)).square().sum() / 36)
    critic.zero_grad()
    loss.backward()
    close(numbers["loss"], loss.detach())
    close(numbers["l1"], (x - y).detach().abs().mean() / 2)
    for (name, p), wanted in zip(found.model.named_parameters(), model.parameters(), strict=True):
        close(p.grad, wanted.grad, 2e-3, 2e-5), name
        state = found.optimizer.state[p]  # of Adam after one step: betas 0.5 and 0.9
        close(state["exp_avg"], 0.5 * p.grad)
        close(state["exp_avg_sq"], 0.1 * p.grad.square())
        close((p - wanted).abs().max(), torch.tensor(0.01), 0.02)
    if adversarial:
        critic.zero_grad()
        (0.5 * (1 - critic(x)).clamp(min=0).mean()
         + 0.5 * (1 + critic(y.detach())).clamp(min=0).mean()).backward()
        for p, wanted in zip(found.discriminator.parameters(), critic.parameters(), strict=True):
            close(p.grad, wanted.grad, 2e-3, 2e-5)
            close(found.discriminator_optimizer.state[p]["exp_avg_sq"], 0.1 * p.grad.square())
    else:
        assert all(p.grad is None for p in found.discriminator.parameters())


def test_the_codebook_learns_by_gradients_alone(learner):
    """Planted fault: moving averages beside them."""
    found, x, _ = learner
    before = found.model.quantizer.codebook.detach().clone()
    found.model.train()(x)
    assert torch.equal(found.model.quantizer.codebook, before)
    assert list(found.model.quantizer.state_dict()) == ["codebook"]
    torch.manual_seed(0)
    fresh = quantizer.Quantizer(200, 50).codebook.detach()
    assert fresh.abs().max() <= 1 / 200 and fresh.abs().mean() == pytest.approx(1 / 400, rel=0.05)


def test_the_warm_up_knows_no_codes(learner):
    found, x, other = learner
    found.autoencoder_step(x)
    y = other.model.decoder(other.model.encoder(x))
    ((x - y).abs().mean() + 0.2 * (x - y).square().mean()).backward()
    assert found.model.quantizer.codebook.grad is None
    for p, wanted in zip(found.model.encoder.parameters(), other.model.encoder.parameters(),
                         strict=True):
        close(p.grad, wanted.grad, 2e-3, 2e-5)


def test_codes_start_at_ten_rounds_of_kmeans():
    from sklearn.cluster import KMeans

    vectors = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    wanted = KMeans(9, init="k-means++", n_init=1, max_iter=10, random_state=5).fit(vectors.numpy())
    close(quantizer.kmeans(vectors, 9, 5), torch.from_numpy(wanted.cluster_centers_))


def test_codes_start_from_features_of_the_first_batches(tmp_path, monkeypatch):
    """As many as asked, without repeats, out of twice as many; drawn by the seed of the cell."""
    monkeypatch.setenv("TEVQ_CACHE", str(tmp_path))
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", 200)
    s = tiny("te", 5, **{"classifier.steps": 1, "stage1.warmup_steps": 0})
    classifier.train(s, tmp_path)
    trainer = stage1.Trainer(open_run(s, "stage1", tmp_path), s, CPU, tmp_path)
    with torch.no_grad():
        z = torch.cat([trainer.model.encode(trainer.images(i)) for i in (0, 1)])
    vectors = z.permute(0, 2, 3, 1).flatten(0, 2)  # 2 batches x 4 images x 64 cells >= 2 x 200
    vectors = vectors[torch.randperm(512, generator=devices.generator(5, 1))[:200]]
    close(trainer.some_features(), vectors)
    trainer.init_codebook()
    close(trainer.model.quantizer.codebook.detach(), quantizer.kmeans(vectors, 12, 5), 1e-3, 1e-4)


def test_the_rate_of_stage1_falls_to_a_tenth():
    s = presets.load("smoke", "te", 0, "stage1.steps=1000").stage1
    assert [stage1.rate(s, step) for step in (0, 500, 1000)] == pytest.approx([1, 0.55, 0.1])
    assert stage1.rate(s, 250) == pytest.approx(0.55 + 0.45 * math.sqrt(0.5))
    assert stage1.rate(presets.load("paper").stage1, 62_499) == 1


def test_lpips_sees_images_in_minus_one_to_one(monkeypatch):
    """Planted faults: its option for [0, 1]; a sum in place of the mean; the order of arguments."""
    lpips = pytest.importorskip("lpips")

    class Fake(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "vgg"
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x, y):
            assert x.min() == -1 and y.max() == 1
            return self.dropout((2 * x + y).mean((1, 2, 3), keepdim=True))

    monkeypatch.setattr(lpips, "LPIPS", Fake)
    distance = losses.perceptual_loss("lpips-vgg", None, "cpu")
    x, y = torch.full((3, 3, 8, 8), -1.0), torch.full((3, 3, 8, 8), 1.0)
    assert float(distance(x, y)) == -1  # no dropout, either


def test_small_gradients_do_not_blow_up_the_adaptive_weight():
    w = torch.ones(1, requires_grad=True)
    found = losses.adaptive_weight((1e-4 * w).sum(), (1e-4 * w).sum(), w)
    assert found == pytest.approx(0.5)  # 1e-4 / (1e-4 + 1e-4)
    assert losses.hinge_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1
    assert losses.hinge_loss(torch.tensor([1.5]), torch.tensor([-1.5])) == 0


def test_the_discriminator_has_the_official_shape():
    torch.manual_seed(0)
    found = losses.PatchDiscriminator(64, 3)
    convolutions = [m for m in found if isinstance(m, torch.nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, *m.kernel_size, *m.stride) for m in convolutions] == [
        (3, 64, 4, 4, 2, 2), (64, 128, 4, 4, 2, 2), (128, 256, 4, 4, 2, 2), (256, 512, 4, 4, 1, 1),
        (512, 1, 4, 4, 1, 1)]
    assert {m.negative_slope for m in found if isinstance(m, torch.nn.LeakyReLU)} == {0.2}
    assert convolutions[2].weight.detach().std() == pytest.approx(0.02, rel=0.05)
    norms = [m.weight.detach() for m in found if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 3 and norms[2].mean() == pytest.approx(1, abs=0.01)
    assert norms[2].std() == pytest.approx(0.02, rel=0.2)


# ------------------------------------------------------------------------- Stage 1: its network


@pytest.mark.parametrize("padding", ["replicate", "zeros", "circular"])
def test_strided_convolution_is_padded_right_and_below(padding):
    """One tap at a time. Planted faults: left and above; both sides; another border rule."""
    x = torch.arange(36.0).view(1, 1, 6, 6) + 1
    layer = vqgan.DOWNSAMPLERS["strided_conv"](1, padding)
    torch.nn.init.zeros_(layer.conv.bias)
    beyond = {"replicate": lambda i: min(i, 5), "circular": lambda i: i % 6, "zeros": int}[padding]
    for a in range(3):
        for b in range(3):
            layer.conv.weight.data.zero_()[0, 0, a, b] = 1
            rows, columns = ([beyond(2 * i + tap) for i in range(3)] for tap in (a, b))
            wanted = F.pad(x, (0, 1, 0, 1))[0, 0][rows][:, columns]
            assert torch.equal(layer(x)[0, 0], wanted)


@pytest.mark.parametrize("name", ["strided_conv", "conv_blurpool", "maxpool", "max_blurpool"])
def test_borders_of_the_encoder_and_of_the_decoder(name):
    """A flat image has flat features when borders are repeated; the decoder pads with zeros."""
    flat = torch.tensor([0.3, -0.8, 0.5]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    for padding in ("replicate", "zeros", "circular"):
        torch.manual_seed(0)
        s = presets.load("smoke", "sc", 0, {"stage1.padding": padding, "stage1.channels": 8})
        model = vqgan.VQGAN(s.override({"stage1.downsample": name}).stage1)
        z = model.encoder(flat)
        uneven = (z - z.mean((2, 3), keepdim=True)).abs().max() / z.std()
        assert (uneven > 0.1) == (padding == "zeros"), (padding, uneven)
        modes = {m.padding_mode for m in model.decoder.modules()
                 if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)}
        assert modes == {"zeros"}


def test_a_block_of_the_encoder_by_hand():
    torch.manual_seed(0)
    block, x = vqgan.ResBlock(8, 12, "replicate"), torch.randn(2, 8, 5, 5)
    h = F.silu(F.group_norm(x, 2, block.norm1.weight, block.norm1.bias, 1e-6))
    h = F.conv2d(F.pad(h, (1, 1, 1, 1), mode="replicate"), block.conv1.weight, block.conv1.bias)
    h = F.silu(F.group_norm(h, 3, block.norm2.weight, block.norm2.bias, 1e-6))
    h = F.conv2d(F.pad(h, (1, 1, 1, 1), mode="replicate"), block.conv2.weight, block.conv2.bias)
    close(block(x), h + F.conv2d(x, block.shortcut.weight, block.shortcut.bias), 1e-3, 1e-4)


def test_attention_of_the_quantizer_by_hand():
    torch.manual_seed(0)
    layer, x = vqgan.Attention(8), torch.randn(2, 8, 3, 4)
    q, k, v = layer.qkv(F.group_norm(x, 2, eps=1e-6)).flatten(2).chunk(3, 1)  # (2, 8, 12)
    y = F.scaled_dot_product_attention(*(t.mT[:, None] for t in (q, k, v)))[:, 0].mT
    close(layer(x), x + layer.out(y.reshape(2, 8, 3, 4)), 1e-3, 1e-4)


# ------------------------------------------------------------------------ Stage 2 and sampling


def small_generator() -> transformer.Transformer:
    torch.manual_seed(0)
    model = transformer.Transformer(11, 7, 8, 4, dim=16, depth=1, heads=2, head_dim=8)
    for head in (model.text_head, model.image_head):
        torch.nn.init.normal_(head.weight, std=0.4)
    return model


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("direction, weights", [("t2i", (1, 3)), ("i2t", (3, 1))])
def test_an_update_of_stage2(clip, direction, weights):
    """Planted faults: the weight of the target fixed or turned round; clipping left out."""
    s = tiny(**{"stage2.clip": clip, "stage2.target_weight": 3.0, "stage2.beta2": 0.97,
                "stage2.lr": 0.01, "stage2.optimizer": "adam"}).stage2
    model, other = small_generator(), small_generator()
    random = torch.Generator().manual_seed(1)
    text = torch.randint(3, 11, (3, 8), generator=random)
    text[1, 5:] = 0  # PAD
    codes = torch.randint(0, 7, (3, 4, 4), generator=random)
    optimizers = stage2.build_optimizers(model, s)
    numbers = stage2.update(model, optimizers, s, text, codes, direction)
    words, image = other(text, codes, direction)
    words = F.cross_entropy(words.mT, text[:, 1:], ignore_index=0)
    image = F.cross_entropy(image.mT, codes.flatten(1)[:, -image.shape[1]:])
    total = (weights[0] * words + weights[1] * image) / 4
    total.backward()
    norm = torch.cat([p.grad.flatten() for p in other.parameters()]).norm()
    close(numbers["loss"], total.detach())
    close(numbers["gradient_norm"], norm)
    assert norm > 0.1
    for p, wanted in zip(model.parameters(), other.parameters(), strict=True):
        close(p.grad, wanted.grad * (clip / norm if clip else 1), 1e-3)
        state = optimizers["adam"].state[p]
        close(state["exp_avg"], 0.1 * p.grad)
        close(state["exp_avg_sq"], 0.03 * p.grad.square())


def test_two_steps_of_muon():
    """Momentum 0.95 (Nesterov), five rounds of Jordan's polynomial, sqrt(rows / columns)."""
    random = torch.Generator().manual_seed(0)
    for shape in ((6, 3), (3, 6)):
        first, second = torch.randn(2, *shape, generator=random, dtype=torch.float64)
        p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        optimizer, wanted = muon.Muon([p], lr=0.1, dtype=torch.float64), torch.zeros_like(p.data)
        average = torch.zeros_like(first)
        for gradient in (first, second):
            p.grad = gradient.clone()
            optimizer.step()
            average = 0.95 * average + 0.05 * gradient
            step = 0.05 * gradient + 0.95 * average
            U, S, V = torch.linalg.svd(step / step.norm(), full_matrices=False)
            for _ in range(5):
                S = 3.4445 * S - 4.775 * S**3 + 2.0315 * S**5
            wanted -= 0.1 * max(1, shape[0] / shape[1]) ** 0.5 * (U * S) @ V
        close(p.data, wanted)


def test_schedules_of_stage2_by_hand():
    def at(name, *steps):
        return [stage2.schedule(name, step, 1100, 100) for step in steps]

    for name in ("linear", "restarts", "constant"):
        assert at(name, 0, 49, 99) == pytest.approx([0.01, 0.5, 1])
    assert at("constant", 100, 1099) == [1, 1]
    assert at("linear", 100, 700, 900, 1000, 1100) == pytest.approx([1, 1, 0.5, 0.25, 0])
    third = 1000 / 6  # steps of one cosine
    assert at("restarts", 100, 100 + third / 2, 100 + third * 5.5) == pytest.approx([1, 0.5, 0.5])
    assert at("restarts", 100 + third / 4) == pytest.approx([(1 + math.sqrt(0.5)) / 2])


def test_random_numbers_of_sampling_in_whole_numbers_of_python():
    def number(seed: int, step: int) -> float:
        x = 0
        for word in (seed, seed >> 32, step * 0x9E3779B9):
            x ^= word & 0xFFFFFFFF
            x = (x ^ x >> 16) + 0x6A09E667 & 0xFFFFFFFF
            x = (x ^ x >> 15) * 0x21F0AAAD & 0xFFFFFFFF
            x = (x ^ x >> 15) * 0x735A2D97 & 0xFFFFFFFF
            x ^= x >> 15
        return (x >> 8) / 2**24

    seeds = [0, 1, 77, (3 << 32) + 5, 2**62 + 12345]
    for step in (0, 1, 255):
        found = sampling.uniform(torch.tensor(seeds), step).tolist()
        assert found == [number(seed, step) for seed in seeds]


# -------------------------------------------------------------------------------- classifier


def test_the_training_of_the_classifier(tmp_path, monkeypatch):
    """AdamW with 0.01, one cycle with 15 % of warm-up, items moved by up to two pixels."""
    seen = {"rates": [], "lit": []}
    step = torch.optim.AdamW.step

    def noted(self, *words):
        group, = self.param_groups
        seen["rates"].append(group["lr"])
        assert group["weight_decay"] == 0.01 and group["betas"] == (0.9, 0.999)
        return step(self, *words)

    def items(data, part):
        images = torch.zeros(40, 28, 28, dtype=torch.uint8)
        images[:, 10:18, 10:18] = 255
        return SourceImages(images, torch.arange(40) % 10)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    monkeypatch.setattr(scenes, "load_items", items)
    draw = classifier.crops
    monkeypatch.setattr(classifier, "crops", lambda *words: seen["lit"].append(
        draw(*words)) or seen["lit"][-1])
    s = tiny(**{"classifier.steps": 20, "classifier.batch": 64, "classifier.lr": 0.02})
    classifier.train(s, tmp_path)
    wanted = [0.01, 1 / 3, 2 / 3, 1, *(0.5 + 0.5 * math.cos(math.pi * (i - 3) / 17)
                                       for i in range(4, 20))]
    assert seen["rates"] == pytest.approx([0.02 * share for share in wanted])
    moved = torch.cat([crops for crops in seen["lit"] if len(crops) == 64]).amax(1) > -1
    corners = {(int(rows.min()), int(columns.min())) for rows, columns in
               (m.nonzero(as_tuple=True) for m in moved)}
    assert corners == {(10 + a, 10 + b) for a in range(-2, 3) for b in range(-2, 3)}
    assert (torch.cat([c for c in seen["lit"] if len(c) != 64]).amax(1)[:, 10:18, 10:18] == 1).all()


def test_the_network_of_the_classifier_by_hand():
    """Nine layers, halved twice; the largest value over the picture, then dropout of 0.3."""
    torch.manual_seed(0)
    model, x = networks.Classifier(4).eval(), torch.rand(2, 3, 28, 28)
    sizes = [tuple(f.shape[1:]) for f in model.features(x)]
    assert sizes == [(4, 28, 28), (8, 14, 14), (16, 7, 7)]
    pooled = model.features(x)[-1].flatten(2).max(2).values
    labels, colours = model(x)
    close(labels, F.linear(pooled, model.label_head.weight, model.label_head.bias))
    close(colours, F.linear(pooled, model.colour_head.weight, model.colour_head.bias))
    assert model.dropout.p == 0.3 and [m for m in model.modules()
                                       if isinstance(m, torch.nn.Dropout)] == [model.dropout]
    found = model.predict(x)
    assert torch.equal(found[0], labels.argmax(1)) and torch.equal(found[1], colours.argmax(1))


# ---------------------------------------------------------------------------------- measures


def test_ink_is_twelve_pixels_above_a_fifth():
    def ink(pixels: int, value: float) -> bool:
        image = torch.full((1, 3, 64, 64), -1.0)
        image[0, 1, 40, 4 : 4 + pixels] = value  # lower left
        found = metrics.quadrant_ink(image, torch.tensor([False]))[0].tolist()
        assert not any(found[:2]) and not found[3]
        return found[2]

    assert ink(12, -0.59) and not ink(11, -0.59) and not ink(12, -0.61)


def test_every_preset_samples_as_officially_and_weighs_as_the_paper():
    """lambda 10, commitment 0.25, adversarial 0.8, images and captions 7 : 1, top 38 of all."""
    for name in presets.PRESETS:
        s = presets.load(name, "te")
        assert (s.stage1.orthogonality, s.stage1.beta, s.stage1.disc_weight) == (10, 0.25, 0.8)
        assert (s.stage2.target_weight, s.stage2.directions) == (7, "both")
        assert (s.evaluation.temperature, s.evaluation.top_k) == (1, 38)
        assert (s.stage1.stride, s.stage1.padding, s.data.scene) == (4, "replicate", 64)
        assert s.stage2.clip == 1 and s.stage2.fraction == 1 and s.data.seed == 0
        assert s.stage1.perceptual_weight == (1 if name == "paper" else 0.2)
        assert s.stage2.beta2 == (0.999 if name in ("paper", "plain") else 0.95)
        assert s.stage2.muon_lr == 0.01
        assert s.stage2.t2i_share == (0.75 if name == "laptop" else 0.5)
        assert s.stage1.codes == s.stage1.code_dim == (32 if name == "smoke" else 256)


def test_the_bootstrap_draws_4000_times_from_seed_0():
    """The 2.5 % and 97.5 % quantiles of what one line of NumPy draws, for one seed and case."""
    random = np.random.default_rng(1)
    n = random.integers(1, 4, (1, 30))
    a, b = (stats.Counts(np.minimum(n, random.integers(0, 4, (1, 30))), n) for _ in range(2))
    draw = np.random.default_rng(0)
    draw.integers(1, size=(4000, 1))  # which seed: there is one
    pick = draw.integers(30, size=(4000, 30))
    shares = [(c.correct[0, pick].sum(1) / n[0, pick].sum(1)) for c in (a, b)]
    wanted = np.quantile(shares[1] - shares[0], [0.025, 0.975])
    assert stats.bootstrap_difference(a, b, np.zeros(30)) == pytest.approx(tuple(wanted))
