"""What a fitted P2 law says about spending: tokens for a loss, where more stop paying, and the split of a budget.

The P2 law knows only the tokens after pruning. How long to prune is a second question, which the Sheared LLaMA paper
answers with one table (arXiv 2310.06694, Table 5, 5B tokens in all): pruning on 0.2, 0.4, 0.8, 1.6B of them ends at
perplexity 7.46, 7.32, 7.23, 7.08, so every doubling of the pruning tokens lowered the final loss by ln(7.46 / 7.08) / 3
= 0.0174 nats, from 4 % to 32 % of all tokens. The decision here: take that gain as the default (a measured one can be
given), and spend so that the last unit of cost buys the same in both stages. With g nats per e-fold of pruning tokens
and h = beta * (recoverable loss) nats per e-fold of later tokens, that is

    pruning cost / continued cost = g / h

which is held within the range the table covers. The default gain includes the loss of the tokens that pruning took
away, so it understates pruning slightly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import root_scalar

from llmshearing.scaling.post_training import PostTrainingLaw

__all__ = [
    'PRUNING_GAIN',
    'PRUNING_SHARE',
    'Case',
    'Costs',
    'Split',
    'diminishing_point',
    'split_beside',
    'split_total',
    'tokens_for_loss',
]

PRUNING_GAIN = math.log(7.46 / 7.08) / 3
PRUNING_SHARE = (0.04, 0.32)
_LOG_MANY_TOKENS = math.log(1e30)


class Case(NamedTuple):
    """What is pruned: size before (N0), fraction removed (rho) and loss of the source (L0)."""

    params_before: float
    pruning_rate: float
    source_loss: float


class Costs(NamedTuple):
    """What a token costs in either stage, in any one unit, and what more pruning buys.

    Args:
        pruning (float): Cost of a token of pruning.
        continued (float): Cost of a token of continued pre-training.
        pruning_gain (float): Nats by which the final loss falls when the pruning tokens double.
        measured (bool): Whether both costs were measured.
    """

    pruning: float = 1.0
    continued: float = 1.0
    pruning_gain: float = PRUNING_GAIN
    measured: bool = False


@dataclass(frozen=True)
class Split:
    """A budget divided between the two stages.

    Args:
        pruning_tokens (float): Tokens of the pruning stage.
        continued_tokens (float): Tokens of continued pre-training.
        total_cost (float): Of both, in the unit of the costs per token.
        pruning_share (float): Pruning tokens as a fraction of all tokens.
        held (bool): Whether the share was held at an end of the range that has been tried.
    """

    pruning_tokens: float
    continued_tokens: float
    total_cost: float
    pruning_share: float
    held: bool


def tokens_for_loss(law: PostTrainingLaw, case: Case, loss: float) -> float:
    """Post-training tokens after which the law predicts ``loss``.

    Raises:
        ValueError: The loss is at or below the law's floor, or the law does not depend on tokens.
    """
    floor = law.floor(*case)
    if loss <= floor:
        raise ValueError(
            f'a loss of {loss:g} cannot be reached: the law never gets below {floor:.4f} for this size '
            f'and rate; prune less, or start from a better source'
        )
    at_one = law.recoverable(case.params_before, case.pruning_rate, 1.0)
    if at_one <= 0:
        raise ValueError('the fitted law does not depend on tokens (D_C = 0); fit it to longer curves')
    log_tokens = math.log(at_one / (loss - floor)) / law.constants['beta']
    if log_tokens > _LOG_MANY_TOKENS:
        raise ValueError(
            f'a loss of {loss:g} is so near the floor of {floor:.4f} that more than 1e30 tokens would be '
            f'needed; ask for a higher loss'
        )
    return math.exp(log_tokens)


def diminishing_point(law: PostTrainingLaw, case: Case, more_tokens: float, least_gain: float) -> float:
    """Tokens after which another ``more_tokens`` buy less than ``least_gain`` nats; 0 if they never buy more."""
    beta = law.constants['beta']
    at_one = law.recoverable(case.params_before, case.pruning_rate, 1.0)
    if at_one <= 0:
        return 0.0
    target = least_gain / (at_one * more_tokens**-beta)

    def gain(log_units: float) -> float:
        """log(gain / least_gain) of the next ``more_tokens`` after exp(log_units) times as many."""
        units = math.exp(log_units)
        return math.log(units**-beta * -math.expm1(-beta * math.log1p(1 / units))) - math.log(target)

    low, high = -60.0, 60.0
    if gain(low) <= 0:
        return 0.0
    if gain(high) > 0:
        raise ValueError(
            f'{least_gain:g} nats for {more_tokens:g} tokens is so little that the law still promises it '
            f'after any sensible number of tokens; ask for a larger gain'
        )
    return more_tokens * math.exp(root_scalar(gain, bracket=(low, high), method='brentq', xtol=1e-12).root)


def split_beside(law: PostTrainingLaw, case: Case, continued_tokens: float, costs: Costs) -> Split:
    """Pruning tokens that fit a given number of tokens of continued pre-training."""
    gain = law.constants['beta'] * law.recoverable(case.params_before, case.pruning_rate, continued_tokens)
    low, high = (share / (1 - share) for share in PRUNING_SHARE)
    # The ratio of tokens, not of cost, is what has been tried.
    wanted = math.inf if gain <= 0 else costs.pruning_gain / math.log(2) / gain * costs.continued / costs.pruning
    ratio = float(np.clip(wanted, low, high))
    pruning_tokens = ratio * continued_tokens
    return Split(
        pruning_tokens,
        continued_tokens,
        costs.pruning * pruning_tokens + costs.continued * continued_tokens,
        ratio / (1 + ratio),
        ratio != wanted,
    )


def split_total(law: PostTrainingLaw, case: Case, total_cost: float, costs: Costs) -> Split:
    """Divides a total cost, in the unit of the costs per token, between the stages."""

    def excess(log_tokens: float) -> float:
        return math.log(split_beside(law, case, math.exp(log_tokens), costs).total_cost / total_cost)

    most = math.log(total_cost / costs.continued)
    # The smallest share of continued tokens is 1 - 0.32 of all; their cost then bounds the root from below.
    least = math.log(total_cost / (costs.continued + costs.pruning * PRUNING_SHARE[1] / (1 - PRUNING_SHARE[1])))
    tokens = math.exp(root_scalar(excess, bracket=(least - 1e-6, most), method='brentq', xtol=1e-13).root)
    return split_beside(law, case, tokens, costs)
