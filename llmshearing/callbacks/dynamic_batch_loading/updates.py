"""Rules that turn losses per domain into new mixture weights, as pure functions chosen by name.

The rule of Sheared LLaMA (arXiv 2310.06694, Algorithm 1) raises the weight of a domain exponentially in how far its loss
is above its reference. The paper clips that gap at 0, the authors' released code does not, and then one domain that
is least far *below* its reference takes everything; so ``sheared`` clips, and the other stays available by name.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


def gaps(losses: np.ndarray, references: np.ndarray) -> np.ndarray:
    """How far each domain's loss is above its reference, 0 where it is not."""
    return np.maximum(losses - references, 0.0)


def sheared(weights: np.ndarray, losses: np.ndarray, references: np.ndarray, eta: float = 1.0) -> np.ndarray:
    """w * exp(eta * max(loss - reference, 0)), normalised (arXiv 2310.06694, Algorithm 1)."""
    return _exponentiated(weights, eta * gaps(losses, references))


def sheared_unclipped(weights: np.ndarray, losses: np.ndarray, references: np.ndarray, eta: float = 1.0) -> np.ndarray:
    """w * exp(eta * (loss - reference)), normalised, as in the authors' released code."""
    return _exponentiated(weights, eta * (losses - references))


def constant(weights: np.ndarray, losses: np.ndarray, references: np.ndarray, eta: float = 1.0) -> np.ndarray:
    """The weights as they are."""
    del losses, references, eta
    return weights / weights.sum()


RULES: dict[str, Rule] = {'sheared': sheared, 'sheared_unclipped': sheared_unclipped, 'constant': constant}


def _exponentiated(weights: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    scaled = weights * np.exp(exponents - exponents.max())
    return scaled / scaled.sum()


def smooth(weights: np.ndarray, smoothing: float) -> np.ndarray:
    """(1 - c) * w + c / k: keeps every domain alive."""
    return (1 - smoothing) * weights + smoothing / len(weights)


def bound(weights: np.ndarray, floor: float | np.ndarray, ceiling: float | np.ndarray) -> np.ndarray:
    """Weights between ``floor`` and ``ceiling`` that keep their ratios where neither binds.

    The result is clip(s * w, floor, ceiling) with the s that makes it sum to 1.

    Raises:
        ValueError: if no weights that sum to 1 fit.
    """
    weights = np.maximum(weights, 1e-300)
    low, high = np.broadcast_to(floor, weights.shape), np.broadcast_to(ceiling, weights.shape)
    if low.sum() > 1 + 1e-12 or high.sum() < 1 - 1e-12 or (low > high).any():
        raise ValueError(f'No weights of {len(weights)} domains can sum to 1 between floor {floor} and ceiling {ceiling}. '
                         f'Lower the floor or raise the ceiling.')
    scaled = weights / weights.sum()
    if (scaled >= low).all() and (scaled <= high).all():
        return scaled
    small, large = 1e-320, 1e308
    for _ in range(2100):
        middle = math.exp((math.log(small) + math.log(large)) / 2)
        if np.clip(middle * weights, low, high).sum() < 1:
            small = middle
        else:
            large = middle
    result = np.clip(large * weights, low, high)
    return result / result.sum()


def check_losses(domains: Sequence[str], losses: np.ndarray) -> None:
    """Raises if a domain's loss is no number, as when its evaluator saw no token.

    Raises:
        ValueError: naming the domains.
    """
    bad = {name: float(loss) for name, loss in zip(domains, losses, strict=True) if not math.isfinite(loss)}
    if bad:
        raise ValueError(f'The evaluation loss of {bad} is not a finite number: either the model has diverged, or an '
                         f'evaluator of these domains has no sample. Check the loss curve and the evaluation data.')
