"""What one sees of a training: one line that updates itself, and in a notebook a small picture."""

import base64
import html
import io
import sys
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from tevq.runs.budget import in_words

EVERY = 1.0  # seconds between updates of the line
SOON = 5.0  # seconds before a time left is told; earlier it would be a guess
SHARE = 0.01  # of the time, for pictures
Picture = Callable[[], tuple[Tensor, str]]  # image (3, H, W) in [-1, 1], words in HTML under it


class Progress:
    """The line of one training, with its last loss and the time left; and its picture.

    The speed is that of the later half of the time so far. So the first step, which compiles, and
    whatever else is slow at the start, are soon forgotten. picture: drawn only where somebody
    watches, as long as all of them took less than a hundredth of the time.
    """

    def __init__(self, name: str, total: int, picture: Picture | None = None):
        self.name, self.total, self.picture = name, total, picture if watched() else None
        self.loss = ""  # words
        self.marks: deque[tuple[float, int]] = deque()  # (time, steps done), of the later half
        self.began, self.width, self.drawing, self.handle = time.monotonic(), 0, 0.0, None
        if self.picture:  # above the line: inside, it would cut it in two
            from IPython.display import HTML, display

            self.handle = display(HTML(""), display_id=True)

    def step(self, done: int) -> None:
        """To be called after each step."""
        now = time.monotonic()
        if not self.marks:
            self.began = now  # the first step is in no mean
        elif now - self.marks[-1][0] < EVERY:
            return
        self.marks.append((now, done))
        while len(self.marks) > 2 and self.marks[1][0] <= (self.began + now) / 2:
            self.marks.popleft()
        left = self.left()
        self._line(f"{self.name}: step {done:,} of {self.total:,}{self.loss}"
                   + (f", {in_words(left)} left" if left is not None else ""))
        if self.picture and now - self.began > SOON and self.drawing < SHARE * (now - self.began):
            self._draw(done)

    def left(self) -> float | None:
        """Seconds to the end; None as long as nobody can know."""
        (since, first), (now, done) = self.marks[0], self.marks[-1]
        if now - self.began < SOON or done == first:
            return None
        return (self.total - done) * (now - since) / (done - first)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._line(f"{self.name}: {text}")
        print(flush=True)
        self.width = 0

    def end(self, seconds: float) -> None:
        """The last line and picture. seconds: what all steps took, also before an interruption."""
        self.say(f"{self.total:,} steps in {in_words(seconds)}{self.loss}")
        if self.picture:
            self._draw(self.total)

    def _line(self, text: str) -> None:
        """Text over that of before; notebooks and terminals go back to its start."""
        print(f"\r{text:<{self.width}}", end="", flush=True)
        self.width = len(text)

    def _draw(self, done: int) -> None:
        from IPython.display import HTML
        from PIL import Image

        began = time.monotonic()
        image, text = self.picture()
        pixels = ((image.float().clamp(-1, 1) + 1) * 127.5).to("cpu", torch.uint8)
        png = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(png, "png")
        self.handle.update(HTML(
            f'<img alt="" style="width: {2 * image.shape[2]}px; max-width: 100%; image-rendering: '
            f'pixelated" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
            f"<br>{html.escape(f'{self.name}, step {done:,}')}: {text}"))
        self.drawing += time.monotonic() - began


def watched() -> bool:
    """True in a notebook that somebody sees. papermill and nbval let nobody answer a question."""
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))
