"""Rules that turn the losses of a round into the weights of the next, as pure functions chosen by name.

The rule of Sheared LLaMA (arXiv 2310.06694, Algorithm 1) raises the weight of a domain exponentially in how far its
loss is above its reference. The paper clips that gap at 0; the authors' released code does not, and there the domain
that is least far *below* its reference takes everything. So ``sheared`` clips and is the default, and
``sheared_unclipped`` stays available by name. ``constant`` is a choice in its own right: several methods of mixing do
not beat fixed weights consistently (arXiv 2411.05735).

A rule is called once per round with what was measured and with its own memory: a list of numbers whose length does not
grow, saved in checkpoints. Only ``ado`` uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmshearing.callbacks.dynamic_batch_loading.ado import ado_weights

__all__ = [
    'NEEDS_REFERENCES',
    'RULES',
    'Memory',
    'Round',
    'Rule',
    'ado',
    'bound',
    'check_losses',
    'constant',
    'sheared',
    'sheared_unclipped',
    'smooth',
]


@dataclass(frozen=True)
class Round:
    """What a rule sees at the end of a round. Arrays are float64 [domains].

    Args:
        weights: weights the rule gave for this round, summing to 1.
        prior: initial mixture of the run, summing to 1.
        losses: evaluation loss of each domain.
        references: reference loss of each domain, NaN where there is none.
        samples: samples trained on since the start, over all domains.
    """

    weights: np.ndarray
    prior: np.ndarray
    losses: np.ndarray
    references: np.ndarray
    samples: int


Memory = list[float]
Rule = Callable[[Round, Memory, float], tuple[np.ndarray, Memory]]


def sheared(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """``w * exp(eta * max(loss - reference, 0))``, normalised (arXiv 2310.06694, Algorithm 1)."""
    return _exponentiated(now.weights, eta * np.maximum(now.losses - now.references, 0.0)), memory


def sheared_unclipped(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """``w * exp(eta * (loss - reference))``, normalised, as in the authors' released code."""
    return _exponentiated(now.weights, eta * (now.losses - now.references)), memory


def constant(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """The weights as they are."""
    del eta
    return now.weights, memory


def ado(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """Weights by how fast each domain's loss falls (arXiv 2410.11820); see ``ado.py`` for the formula."""
    del eta
    return ado_weights(now.losses, now.samples, now.prior, memory)


RULES: dict[str, Rule] = {'sheared': sheared, 'sheared_unclipped': sheared_unclipped, 'constant': constant, 'ado': ado}
NEEDS_REFERENCES = ('sheared', 'sheared_unclipped')


def _exponentiated(weights: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    scaled = weights * np.exp(exponents - exponents.max())
    return scaled / scaled.sum()


def smooth(weights: np.ndarray, smoothing: float) -> np.ndarray:
    """(1 - c) * w + c / k with c = ``smoothing``: keeps every domain alive."""
    return (1 - smoothing) * weights + smoothing / len(weights)


def bound(weights: np.ndarray, floor: np.ndarray | float, ceiling: np.ndarray | float) -> np.ndarray:
    """The weights between ``floor`` and ``ceiling`` that keep the given ratios wherever neither binds.

    That is clip(s * weights, floor, ceiling) with the one s that makes it sum to 1.

    Args:
        weights: float64 [domains], positive.
        floor: least weight, one for all or one per domain.
        ceiling: greatest weight, likewise.

    Returns:
        float64 [domains] that sum to 1.

    Raises:
        ValueError: if no weights that sum to 1 fit between floor and ceiling.
    """
    low, high = np.broadcast_to(floor, weights.shape), np.broadcast_to(ceiling, weights.shape)
    if low.sum() > 1 + 1e-9 or high.sum() < 1 - 1e-9 or (low > high).any():
        raise ValueError(
            f'No weights of {len(weights)} domains sum to 1 between floor {floor} and ceiling {ceiling}. '
            f'Lower the floor or raise the ceiling.'
        )
    scaled = weights / weights.sum()
    if (scaled >= low).all() and (scaled <= high).all():
        return scaled
    # The sum grows with s and is linear between the values of s at which a domain meets a bound.
    positive = np.maximum(scaled, 1e-300)
    meets = np.unique(np.concatenate([low / positive, high / positive]))
    sums = np.array([np.clip(s * positive, low, high).sum() for s in meets])
    after = min(int(np.searchsorted(sums, 1.0)), len(meets) - 1)
    before = max(after - 1, 0)
    rise = sums[after] - sums[before]
    part = (1.0 - sums[before]) / rise if rise > 0 else 0.0
    return np.clip((meets[before] + part * (meets[after] - meets[before])) * positive, low, high)


def check_losses(domains: Sequence[str], losses: np.ndarray) -> None:
    """Raises if a domain's loss is no finite number, as when its evaluator saw no token.

    Raises:
        ValueError: naming the domains.
    """
    bad = {name: float(loss) for name, loss in zip(domains, losses, strict=True) if not math.isfinite(loss)}
    if bad:
        raise ValueError(
            f'The evaluation loss of {bad} is not a finite number: the model has diverged, or the '
            f'evaluators of these domains saw no token. Check the loss curve and the evaluation data.'
        )
