"""What `llmshearing budget` answers, in lines and as JSON: how a law fits, a loss, and how to spend tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.scaling.fields import positive_number, write_json
from llmshearing.scaling.intervals import jackknife_interval
from llmshearing.scaling.law_file import RANGES, law_to_json, read_law
from llmshearing.scaling.post_training import CONSTANTS, PostTrainingLaw, check_runs, fit_post_training
from llmshearing.scaling.run_logs import cost_per_token, read_all_runs
from llmshearing.scaling.spending import (
    Case,
    Costs,
    Split,
    diminishing_point,
    split_beside,
    split_total,
    tokens_for_loss,
)

__all__ = ['SpendingPlan', 'fit_law_file', 'predict_loss', 'read_costs']

_BESIDE = 1.2  # times outside the runs' pairs of size and rate that are not worth telling


def fit_law_file(runs: Sequence[str], output: str | Path) -> list[str]:
    """Reads runs (:func:`read_all_runs`), fits the law to them, writes it, and says in lines how well it fits."""
    curves = read_all_runs(runs)
    notes = check_runs(curves)
    law = fit_post_training(curves)
    content = law_to_json(law, curves, notes)
    write_json(output, content)
    quality = content['fit']
    lines = ['constants: ' + ', '.join(f'{name} {law.constants[name]:.4g}' for name in CONSTANTS)]
    for row in quality['runs']:
        worst = 100 * row['worst_residual']
        lines.append(f'{row["name"]}: {row["points"]} points, worst residual {worst:.2f} %{_slopes(row)}')
    rms, worst = 100 * quality['rms_residual'], 100 * quality['worst_residual']
    lines.append(f'all: rms residual {rms:.3f} %, worst {worst:.2f} %{_slopes(quality)}')
    return lines + [f'note: {note}' for note in notes] + [f'written: {output}']


def predict_loss(law_file: str, case: Case, tokens: float) -> str:
    """One line with the loss after so many tokens, how far that extrapolates, and the interval.

    Raises:
        ValueError: If the law gives no sensible loss there.
    """
    law, others = read_law(law_file)
    reach = _reach(law, case, tokens)
    values = [float(one.predict(*case, tokens)) for one in (law, *others)]
    if not (all(map(math.isfinite, values)) and values[0] > 0):
        raise ValueError(
            f'the law gives no sensible loss here ({values[0]:.4g}; {reach}); fit it to runs nearer to this case'
        )
    interval = jackknife_interval(values[0], np.array(values[1:]), len(others) - 1)
    spread = 'no interval from fewer than three runs'
    if interval is not None:
        spread = f'90 % {interval[0]:.4f} to {interval[1]:.4f}'
    return f'predicted loss: {values[0]:.6f} | {reach} | {spread}'


def read_costs(pruning: str, continuing: str, pruning_gain: float) -> Costs:
    """Cost of a token of pruning and of continuing, each a number or a metrics file that it is measured from.

    Raises:
        ValueError: For anything else, or one of each.
    """
    given = {'--pruning-cost': pruning, '--continue-cost': continuing}
    logs = [option for option, value in given.items() if value.endswith('.jsonl')]
    if len(logs) == 2:
        return Costs(cost_per_token(pruning), cost_per_token(continuing), pruning_gain, measured=True)
    if logs:
        raise ValueError(
            f'{logs[0]} is a metrics file and the other cost a number, which are in different units; '
            f'give two files or two numbers'
        )
    values = []
    for option, value in given.items():
        try:
            values.append(positive_number(float(value), option))
        except ValueError as error:
            raise ValueError(f'{option} must be a positive number or a metrics file (.jsonl), got {value!r}') from error
    return Costs(values[0], values[1], pruning_gain)


class SpendingPlan:
    """Answers about one case, each with the split between pruning and continuing that goes with it.

    Args:
        law (PostTrainingLaw): The law.
        case (Case): The pruned model.
        costs (Costs): Of a token; measured ones are told.

    Attributes:
        lines (list[str]): What to print.
    """

    def __init__(self, law: PostTrainingLaw, case: Case, costs: Costs):
        self.law, self.case, self.costs = law, case, costs
        self.lines: list[str] = []
        self._answers: dict[str, Any] = {}
        self._floor = law.floor(*case)
        if costs.measured:
            self.lines.append(
                f'cost per token: {costs.pruning:.4g} pruning, {costs.continued:.4g} continued '
                f'(x{costs.pruning / costs.continued:.3g}), measured, in hours unless speed_monitor has another '
                'time_unit'
            )
        self.lines.append(f'floor: {self._floor:.4f} is the loss this law never gets below')

    def answer_target_loss(self, loss: float) -> None:
        """How many tokens reach a loss."""
        tokens = tokens_for_loss(self.law, self.case, loss)
        self._answer('target_loss', f'tokens needed: {tokens:.6g} for a loss of {loss:g}', tokens)

    def answer_diminishing(self, more_tokens: float, least_gain: float) -> None:
        """After how many tokens others buy too little."""
        tokens = diminishing_point(self.law, self.case, more_tokens, least_gain)
        what = f'another {more_tokens:g} tokens buy less than {least_gain:g}'
        if tokens == 0:
            self.lines.append(f'diminishing point: 0; already the first tokens: {what}')
            self._answers['diminishing'] = {'tokens': 0.0, 'predicted_loss': None, 'split': None}
            return
        point = f'diminishing point: {tokens:.6g} tokens (loss {self._loss(tokens):.4f})'
        self._answer('diminishing', f'{point}, after it {what}', tokens)

    def answer_total_cost(self, cost: float) -> None:
        """How to divide a cost between both stages."""
        split = split_total(self.law, self.case, cost, self.costs)
        tokens = split.continued_tokens
        self._answer(
            'total_cost', f'predicted loss: {self._loss(tokens):.6f} for a total cost of {cost:g}', tokens, split
        )

    def as_json(self) -> dict[str, Any]:
        """The case and all answers so far."""
        return {**self.case._asdict(), 'floor': self._floor, 'answers': self._answers}

    def _loss(self, tokens: float) -> float:
        return float(self.law.predict(*self.case, tokens))

    def _answer(self, key: str, what: str, tokens: float, split: Split | None = None) -> None:
        reach = _reach(self.law, self.case, tokens)
        split = split or split_beside(self.law, self.case, tokens, self.costs)
        self.lines.append(f'{what} | {reach}\n  {_split_line(split)}')
        answer = {'tokens': tokens, 'predicted_loss': self._loss(tokens), 'split': dataclasses.asdict(split)}
        self._answers[key] = answer


def _reach(law: PostTrainingLaw, case: Case, tokens: float) -> str:
    factors = law.extrapolation(case.params_before, case.pruning_rate, tokens)
    outside = ', '.join(f'{name} x{factors[name]:.3g}' for name in RANGES if factors[name] > 1)
    beside = law.outside_pairs(case.params_before, case.pruning_rate)
    if factors['params_before'] == factors['pruning_rate'] == 1 and beside > _BESIDE:
        pair = f'no run had such a rate at such a size: x{beside:.3g} from the nearest between them'
        return f'extrapolation factor {max(factors["factor"], beside):.3g} ({", ".join(filter(None, (outside, pair)))})'
    return f'extrapolation factor {factors["factor"]:.3g} ({outside or "inside the range of the runs"})'


def _slopes(row: dict[str, Any]) -> str:
    if row['average_slope'] is None:
        return ''
    return (
        f', average slope difference {row["average_slope_difference"]:.3g} of {row["average_slope"]:.3g} nats per '
        f'1e9 tokens'
    )


def _split_line(split: Split) -> str:
    held = ', held at the end of the range that has been tried' if split.held else ''
    return (
        f'split: {split.pruning_tokens:.4g} pruning tokens and {split.continued_tokens:.4g} continued tokens, '
        f'total cost {split.total_cost:.4g} (pruning {100 * split.pruning_share:.1f} % of the tokens{held})'
    )
