"""What share of a round's time goes to evaluation: logged every round, and one warning when it is too much.

Evaluating seven domains of 500 sequences after every 50 steps of 32 sequences, as the paper's pruning stage does, costs
more than half as many forward passes as training has samples. The default limit of a quarter is where longer rounds or
fewer sequences buy more than the fresher weights do.
"""

from __future__ import annotations

import logging
import time

__all__ = ['EvalClock']

log = logging.getLogger(__name__)


class EvalClock:
    """Measures wall time of rounds and of the evaluations in them.

    Args:
        max_share (float): Warn, once, when a round's share is above this.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self._warned = False
        self.start_round()

    def start_round(self) -> None:
        """Begins a round now."""
        self._round_began = time.monotonic()
        self._evaluating_since = self._round_began
        self._evaluation = 0.0

    def start_evaluation(self) -> None:
        """Begins an evaluation now."""
        self._evaluating_since = time.monotonic()

    def end_evaluation(self) -> None:
        """Ends an evaluation now."""
        self._evaluation += time.monotonic() - self._evaluating_since

    def end_round(self) -> float:
        """Ends the round now and begins the next. Returns the share of its time that went to evaluation."""
        share = self._evaluation / max(time.monotonic() - self._round_began, 1e-9)
        if share > self.max_share and not self._warned:
            log.warning(
                'Evaluation took %.0f %% of the time of a mixing round; max_eval_share is %.0f %%. Evaluate '
                'fewer sequences per domain (max_eval_sequences) or make rounds longer (round_batches).',
                100 * share,
                100 * self.max_share,
            )
            self._warned = True
        self.start_round()
        return share
