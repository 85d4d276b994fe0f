"""A run of which one rank is killed in a batch, as by the kernel when memory runs out: ``dead_rank_worker.py WORK PLACE
BATCH``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from composer.core import Callback
from composer.utils import dist

from tests.runs.stages import train


class Die(Callback):
    """Rank 1 notes the time and is gone."""

    def __init__(self, place: Path, batch: int):
        self.place, self.batch = place, batch

    def after_loss(self, state, logger):
        if dist.get_global_rank() == 1 and state.timestamp.batch.value == self.batch:
            (self.place / 'died').write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == '__main__':
    work, place, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    train('prune', work, place, callbacks=[Die(place, batch)])
