"""Rules that turn the losses of a round into the weights of the next, as pure functions chosen by name.

The rule of Sheared LLaMA (arXiv 2310.06694, Algorithm 1) raises the weight of a domain exponentially in how far its
loss is above its reference. The paper clips that gap at 0; the authors' released code does not, and there the domain
that is least far *below* its reference takes everything. So ``sheared`` clips and is the default, and
``sheared_unclipped`` stays available by name. ``constant`` is a choice in its own right: several methods of mixing do
not beat fixed weights consistently (arXiv 2411.05735).

A rule is called once per round with what was measured and with its own memory: a list of numbers whose length does not
grow, saved in checkpoints; ``ado`` and ``dro`` use it. The last argument is the rule's own strength:
``rho`` of ``dro``, else ``eta``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmshearing.callbacks.dynamic_batch_loading.ado import ado_weights
from llmshearing.callbacks.dynamic_batch_loading.dro import dro_weights

__all__ = [
    'KEEP_DOMAINS_ALIVE',
    'NEEDS_REFERENCES',
    'READS',
    'RULES',
    'Memory',
    'Round',
    'Rule',
    'ado',
    'check_losses',
    'constant',
    'dro',
    'sheared',
    'sheared_unclipped',
]


@dataclass(frozen=True)
class Round:
    """What a rule sees at the end of a round. Arrays are float64 [domains].

    Args:
        weights (np.ndarray): Weights the rule gave for this round, summing to 1.
        prior (np.ndarray): Initial mixture of the run, summing to 1.
        losses (np.ndarray): Evaluation loss of each domain.
        references (np.ndarray): Reference loss of each domain, NaN where there is none.
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
Rule = Callable[[Round, Memory, float], tuple[np.ndarray, Memory]]


def sheared(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """``w * exp(eta * max(loss - reference, 0))``, normalised (arXiv 2310.06694, Algorithm 1)."""
    return _exponentiated(now.weights, eta * np.maximum(now.losses - now.references, 0.0)), memory


def sheared_unclipped(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """``w * exp(eta * (loss - reference))``, normalised, as in the authors' released code."""
    return _exponentiated(now.weights, eta * (now.losses - now.references)), memory


def constant(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """The weights as they are."""
    return now.weights, memory


def ado(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """Weights by how fast each domain's loss falls (arXiv 2410.11820); see ``ado.py`` for the formula."""
    return ado_weights(now.losses, now.samples, now.prior, memory)


def dro(now: Round, memory: Memory, rho: float = 0.05) -> tuple[np.ndarray, Memory]:
    """The worst mixture near a base (arXiv 2411.14055); see ``dro.py``. Predicts references that are NaN."""
    return dro_weights(now.losses, now.references, now.samples, now.total, now.prior, memory, rho)


RULES: dict[str, Rule] = {
    'sheared': sheared,
    'sheared_unclipped': sheared_unclipped,
    'constant': constant,
    'ado': ado,
    'dro': dro,
}
READS: dict[str, tuple[str, ...]] = {
    'sheared': ('eta', 'smoothing', 'average'),
    'sheared_unclipped': ('eta', 'smoothing', 'average'),
    'constant': (),
    'ado': ('smoothing', 'average'),
    'dro': ('rho', 'average'),
}
"""Options of the callback that have a say in a rule's weights, of those that not all rules go by."""
NEEDS_REFERENCES = ('sheared', 'sheared_unclipped')
KEEP_DOMAINS_ALIVE = ('constant', 'dro')
"""Rules whose weights need no smoothing."""


def _exponentiated(weights: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    scaled = weights * np.exp(exponents - exponents.max())
    return scaled / scaled.sum()


def check_losses(domains: Sequence[str], losses: np.ndarray) -> None:
    """Raises if a domain's loss is no finite number, as when its evaluator saw no token.

    Raises:
        ValueError: Naming the domains.
    """
    bad = {name: float(loss) for name, loss in zip(domains, losses, strict=True) if not math.isfinite(loss)}
    if bad:
        raise ValueError(
            f'The evaluation loss of {bad} is not a finite number: the model has diverged, or the '
            f'evaluators of these domains saw no token. Check the loss curve and the evaluation data.'
        )
