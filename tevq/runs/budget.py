"""A deadline for training: it saves in time and stops; the same command goes on later.

The deadline comes from outside (`./run_all.sh --budget`, a batch system), so it is an environment
variable, which reaches the kernels of notebooks too.
"""

import math
import os
import time

from tevq.config import SettingsError, UserError

VARIABLE = "TEVQ_DEADLINE"  # seconds since 1970
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again


class OutOfTimeError(UserError):
    """Training has stopped at a checkpoint because the deadline is near."""


class Deadline:
    """Tells a training loop when it must not begin another step.

    Kept free before the deadline: the longest step so far, and twice the longest save (a disk may
    be slower next time). Raises SettingsError when $TEVQ_DEADLINE is no time.
    """

    def __init__(self):
        text = os.environ.get(VARIABLE) or "inf"
        try:
            self.at = time.monotonic() + float(text) - time.time()
        except ValueError:
            raise SettingsError(f"{VARIABLE} = {text!r} is not a time in seconds since 1970; unset "
                                "it, or use --budget SECONDS") from None
        self.longest_step = self.longest_save = 0.0
        self.asked = math.inf  # when `near` was last asked

    @property
    def needs_a_save(self) -> bool:
        """There is a deadline, and how long a save takes is not known yet."""
        return self.at < math.inf and not self.longest_save

    def saved(self, seconds: float) -> None:
        """Takes note of how long a save has taken."""
        self.longest_save = max(self.longest_save, seconds)

    def near(self) -> bool:
        """Asked once before the first step and once after every step."""
        now = time.monotonic()
        self.longest_step = max(self.longest_step, now - self.asked)
        self.asked = now
        return now + self.longest_step + 2 * self.longest_save >= self.at


def in_words(seconds: float) -> str:
    """A time in its usual unit."""
    return (f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min" if seconds < 5400
            else f"{seconds / 3600:.1f} h")
