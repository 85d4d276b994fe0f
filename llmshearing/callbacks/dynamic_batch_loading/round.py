"""What was measured at the end of a round, which rules make the weights of the next from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ['Memory', 'Round']


@dataclass(frozen=True)
class Round:
    """What a rule sees at the end of a round. Arrays are float64 [domains].

    Args:
        weights (np.ndarray): Weights the rule gave for this round, summing to 1.
        prior (np.ndarray): Initial mixture of the run, summing to 1.
        losses (np.ndarray): Evaluation loss of each domain, in nats per token.
        references (np.ndarray): Reference loss of each domain, in nats per token; NaN where there is none.
        samples (int): Samples trained on since the start, over all domains.
        total (int): Samples of the whole run.
    """

    weights: np.ndarray
    prior: np.ndarray
    losses: np.ndarray
    references: np.ndarray
    samples: int
    total: int = 0


Memory = list[float]
