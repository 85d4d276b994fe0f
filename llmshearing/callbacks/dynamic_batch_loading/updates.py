"""Rules that turn the losses of a round into the weights of the next: pure functions, in a registry by name.

The rule of Sheared LLaMA (arXiv 2310.06694, Algorithm 1) raises the weight of a domain exponentially in how far its
loss is above its reference. The paper clips that gap at 0; the authors' released code does not, and there the domain
that is least far *below* its reference takes everything. So ``sheared`` clips and is the default, and
``sheared_unclipped`` stays available by name. ``constant`` is a choice in its own right: several methods of mixing do
not beat fixed weights consistently (arXiv 2411.05735).

A rule is called once per round with what was measured and with its own memory: a list of numbers whose length does not
grow, saved in checkpoints; ``ado`` and ``dro`` use it. The last argument is the rule's own strength:
``rho`` of ``dro``, else ``eta``.

Whoever has another rule registers an :class:`UpdateRule`, in Python (``update_rules('mine', func=UpdateRule(...))``) or
by an entry point of the group ``llmshearing_update_rules``, and names it in ``update``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import catalogue
import numpy as np

from llmshearing.callbacks.dynamic_batch_loading.ado import ado_weights
from llmshearing.callbacks.dynamic_batch_loading.dro import dro_weights
from llmshearing.callbacks.dynamic_batch_loading.round import Memory, Round
from llmshearing.utils.checks import check_one_of, of_another_package

__all__ = [
    'Memory',
    'Round',
    'Rule',
    'UpdateRule',
    'check_losses',
    'constant',
    'find_rule',
    'sheared',
    'sheared_unclipped',
    'update_rules',
]


Rule = Callable[[Round, Memory, float], tuple[np.ndarray, Memory]]

update_rules = catalogue.create('llmshearing', 'update_rules', entry_points=True)


@dataclass(frozen=True)
class UpdateRule:
    """A rule, and what the callback has to know of it.

    Attributes:
        function (Callable): From a :class:`Round`, the memory and the strength to the new weights, float64 [domains]
            summing to 1, and the new memory; the same on every rank.
        reads (tuple[str, ...]): Options of the callback that have a say in its weights, of ``eta``, ``rho``,
            ``smoothing`` and ``average``; a run is warned of others that it sets. With ``rho``, that is its strength.
        needs_references (bool): It compares with reference losses; a run without them is refused.
        keeps_domains_alive (bool): Its weights need no smoothing, and get none.
    """

    function: Rule
    reads: tuple[str, ...] = ('eta', 'smoothing', 'average')
    needs_references: bool = False
    keeps_domains_alive: bool = False


def sheared(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """``w * exp(eta * max(loss - reference, 0))``, normalised (arXiv 2310.06694, Algorithm 1)."""
    return _exponentiated(now.weights, eta * np.maximum(now.losses - now.references, 0.0)), memory


def sheared_unclipped(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """``w * exp(eta * (loss - reference))``, normalised, as in the authors' released code."""
    return _exponentiated(now.weights, eta * (now.losses - now.references)), memory


def constant(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """The weights as they are."""
    return now.weights, memory


for _name, _rule in {
    'sheared': UpdateRule(sheared, needs_references=True),
    'sheared_unclipped': UpdateRule(sheared_unclipped, needs_references=True),
    'constant': UpdateRule(constant, reads=(), keeps_domains_alive=True),
    'ado': UpdateRule(ado_weights, reads=('smoothing', 'average')),
    'dro': UpdateRule(dro_weights, reads=('rho', 'average'), keeps_domains_alive=True),
}.items():
    update_rules(_name, func=_rule)


def find_rule(name: str) -> UpdateRule:
    """The registered rule.

    Raises:
        ValueError: If there is none of that name, naming those there are, or it is no :class:`UpdateRule`.
    """
    check_one_of('update', name, update_rules.get_all(), of_another_package('rule', 'update_rules'))
    rule = update_rules.get(name)
    if not isinstance(rule, UpdateRule):
        raise ValueError(
            f'update: {name} is registered as a {type(rule).__name__}, expected an UpdateRule; register '
            f'update_rules({name!r}, func=UpdateRule(function)).'
        )
    return rule


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
