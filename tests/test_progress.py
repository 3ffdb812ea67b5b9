"""What one sees of a training, and what an interrupt leaves."""

import base64
import io
import re
import signal
import threading

import pytest
from PIL import Image
from small import FEATURES, tiny

from tevq.runs.budget import in_words
from tevq.runs.run import open_run
from tevq.train import loop, progress, stage1, stage2
from tevq.train.loop import Loop, StoppedError, interruptible
from tevq.train.progress import Progress


class Clock:
    """A time that goes by only when told so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def usual(step: int) -> float:
    """Seconds of a step: the first compiles, the next ten are slow, every 50th measures."""
    return 60 if step == 0 else 2 if step <= 10 else 0.1 + 3 * (step % 50 == 0)


def test_the_time_left_is_not_fooled_by_the_start(clock):
    """Planted faults: the mean over all steps; the last step alone."""
    line, total, seen = Progress("a", 2000), 2000, []
    for step in range(total):
        clock.now += usual(step)
        line.step(step + 1)
        truth = sum(map(usual, range(step + 1, total)))
        if step >= 300 and total - step > 200:
            seen.append(line.left() / truth)
    assert len(seen) > 1000 and 0.75 < min(seen) and max(seen) < 1.35


def test_nothing_is_told_before_it_can_be_known(clock, capsys):
    line = Progress("a", 100)
    for step in range(100):
        clock.now += 0.4
        line.step(step + 1)
    said = capsys.readouterr().out.split("\r")
    early = [text for text in said if re.search(r"step \d of", text)]
    assert early and not any("left" in text for text in early)
    assert re.search(r"step 60 of 100, 1[56] s left", "\n".join(said).replace("step 61", "step 60"))
    assert len(said) < 60  # once a second at most


def screen(text: str) -> list[str]:
    """The lines that a terminal shows."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part):]
        lines.append(shown.rstrip())
    return lines


def test_one_line_stays_of_a_training(tmp_path, monkeypatch, capsys):
    """Planted faults: rests of a longer line; the heartbeats stay."""
    monkeypatch.setattr(progress, "EVERY", 0)
    run = open_run(tiny(), "stage2", tmp_path)
    run.folder.mkdir(parents=True)
    training = Loop(run, {}, 120)
    for step in training:
        if step == 115:
            training.log(loss=0.25)
            training.progress.say("a word")
    name = re.escape(training.run.name)
    first, last, rest = screen(capsys.readouterr().out)
    assert re.fullmatch(f"{name}: a word", first) and rest == ""
    assert re.fullmatch(f"{name}: 120 steps in [0-9]+ s, loss 0.250", last)


def test_times_in_words():
    assert [in_words(x) for x in (3.4, 138, 5399, 9000)] == ["3 s", "2.3 min", "90.0 min", "2.5 h"]


def interrupt_at(number: int, steps: Loop, times: int = 1) -> None:
    for step in steps:
        if step == number:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.promise("resume")
def test_an_interrupt_saves_and_says_so(tmp_path, capsys):
    """Planted faults: nothing saved; the handler stays; a second one is not heard."""
    run, before = open_run(tiny(), "stage2", tmp_path), signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError, match="stopped at step 4 of 9, interrupted; run again to go"):
        with interruptible():
            interrupt_at(3, Loop(run, {}, 9))
    assert run.steps_saved() == [4] and signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), interruptible():
        interrupt_at(5, Loop(run, {}, 9), times=2)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)  # no loop is at work
    with interruptible():
        assert list(Loop(run, {}, 9)) == [4, 5, 6, 7, 8]
    assert "goes on from step 4 of 9" in capsys.readouterr().out


def test_other_threads_train_too(tmp_path):
    done = []

    def train():
        with interruptible():
            done.extend(Loop(open_run(tiny(), "stage2", tmp_path), {}, 3))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert done == [0, 1, 2]


@pytest.mark.promise("resume")
def test_interrupts_and_pictures_change_no_training(tmp_path, monkeypatch):
    """Planted faults: a picture leaves the network in another mode, or draws random numbers."""
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", FEATURES)
    settings, shown = tiny(), []
    for train in (stage1.train, stage2.train):
        train(settings, tmp_path / "whole")
    for name, value in (("watched", lambda: True), ("EVERY", 0), ("SOON", -1), ("SHARE", 1e9)):
        monkeypatch.setattr(progress, name, value)
    monkeypatch.setattr("IPython.display.display", lambda *words, **more: Handle(shown))
    for train in (stage1.train, stage2.train):
        with monkeypatch.context() as planted:
            planted.setattr(loop.Loop, "watch", lambda self, *values: self.step == 2 and
                            self.run.folder.parent.name != "classifier"
                            and signal.raise_signal(signal.SIGINT))
            with pytest.raises(StoppedError, match="step 3 of 6"):
                train(settings, tmp_path / "pieces")
        train(settings, tmp_path / "pieces")
    for kind in ("stage1", "stage2"):
        one, two = (open_run(settings, kind, tmp_path / place) for place in ("whole", "pieces"))
        assert one.checksum == two.checksum and one.metrics() == two.metrics()
    sizes = [Image.open(io.BytesIO(base64.b64decode(re.search("base64,([^\"]+)", page)[1]))).size
             for page in shown]
    assert {(6 * 64, 2 * 64), (4 * 64, 64)} <= set(sizes)
    assert "step 6: training scenes" in "".join(shown) and "captions, painted" in shown[-1]


class Handle:
    """Of a display."""

    def __init__(self, shown: list[str]):
        self.shown = shown

    def update(self, page) -> None:
        self.shown.append(page.data)


def test_only_a_notebook_that_somebody_sees_shows_pictures(monkeypatch):
    """Planted fault: papermill's copies hold the pictures of a training."""
    assert not progress.watched()
    for answer in (True, False):
        kernel = type("Kernel", (), {"_allow_stdin": answer})
        monkeypatch.setattr("IPython.get_ipython", lambda kernel=kernel: type(
            "Shell", (), {"kernel": kernel}))
        assert progress.watched() is answer
