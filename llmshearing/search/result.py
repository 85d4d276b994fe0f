"""How a search is told: a table, what to ask for, and a picture of loss against speed and size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from llmshearing.models.shapes import ModelShape
from llmshearing.planning.plan import shape_guidance
from llmshearing.reports.scatter import scatter_panel, side_by_side
from llmshearing.search.candidates import name_of, target_of

__all__ = ['Candidate', 'SearchResult', 'pareto_front']

DRAWS = 2000
KEYS = ('num_hidden_layers', 'hidden_size', 'num_attention_heads', 'num_key_value_heads', 'intermediate_size')


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One shape and what was measured of it.

    Attributes:
        shape (ModelShape): The shape.
        budget (str): The budget that it was proposed for.
        parameters (int): Its parameters.
        losses (dict[str, float]): Nats per token on held-out text, by text, cut and not trained.
        speed (dict[str, float]): Tokens/s of reading (``forward``) and of writing (``generate``).
        proportional (bool): Whether it is the one nearest to the source's proportions.
        curve (list[dict]): Losses while it was trained; empty if it was not.
        extrapolated (dict | None): See :func:`~llmshearing.search.extrapolation.extrapolate`.
    """

    shape: ModelShape
    budget: str
    parameters: int
    losses: dict[str, float]
    speed: dict[str, float]
    proportional: bool
    curve: list[dict[str, Any]]
    extrapolated: dict[str, Any] | None = None

    @property
    def cut_loss(self) -> float:
        """Mean over texts, not trained."""
        return mean(self.losses.values())

    @property
    def trained_loss(self) -> float:
        """Mean over texts after the last step; NaN if it was not trained."""
        return mean(self.curve[-1]['losses'].values()) if self.curve else math.nan

    @property
    def milliseconds(self) -> float:
        """That a written token takes."""
        return 1000 / self.speed['generate']

    def is_allowed(self, latency: float | None) -> bool:
        """Whether a token takes no longer; None allows all."""
        return latency is None or self.milliseconds <= latency

    @property
    def order(self) -> tuple[bool, float]:
        """Sorts the best first: by the loss after training, those that were not trained after those that were."""
        return (not self.curve, self.trained_loss if self.curve else self.cut_loss)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        candidates (list[Candidate]): Best first, budgets in the order they were given.
        source_losses (dict[str, float]): Of the source, by text.
        latency (float | None): Most milliseconds per generated token that were allowed.
        tokens (int | None): Of the real run, which losses were extrapolated to.
        source (ModelShape | None): What was cut, for guidance on the shapes that are proposed.
        source_parameters (int): Its parameters.
        bytes_per_token (dict[str, float]): UTF-8 bytes that a token of the source stands for, by text.
        trimmed (str): Which source with fewer tokens was cut, in words; empty where it was the given one.
    """

    candidates: list[Candidate]
    source_losses: dict[str, float]
    latency: float | None = None
    tokens: int | None = None
    source: ModelShape | None = None
    source_parameters: int = 0
    bytes_per_token: dict[str, float] = dataclasses.field(default_factory=dict)
    trimmed: str = ''

    @property
    def budgets(self) -> list[str]:
        """In the order they were given."""
        return list(dict.fromkeys(each.budget for each in self.candidates))

    def best(self, budget: str) -> Candidate | None:
        """The best candidate of a budget that is fast enough; None if none is."""
        allowed = [each for each in self.candidates if each.budget == budget and each.is_allowed(self.latency)]
        return min(allowed, key=lambda each: each.order, default=None)

    def trained(self, budget: str) -> list[Candidate]:
        """The candidates of a budget that were trained."""
        return [each for each in self.candidates if each.budget == budget and each.curve]

    def order_agreement(self, budget: str) -> tuple[float, float, float] | None:
        """Whether the order of a budget's candidates before training is that after it.

        Returns:
            tuple[float, float, float] | None: Spearman's correlation of both losses over the candidates that were
            trained, and its 90 % interval by drawing candidates anew; None below three, or where losses tie.
        """
        pairs = np.array([(each.cut_loss, each.trained_loss) for each in self.trained(budget)])
        if len(pairs) < 3:
            return None
        generator = np.random.default_rng(0)
        drawn = (pairs[generator.integers(len(pairs), size=len(pairs))] for _ in range(DRAWS))
        found = [_rank_correlation(some) for some in drawn if (np.ptp(some, axis=0) > 0).all()]
        if not found:
            return None
        low, high = np.quantile(found, (0.05, 0.95))
        return _rank_correlation(pairs), float(low), float(high)

    def table(self) -> list[str]:
        """A row per candidate, best first."""
        head = 'layers  hidden  heads  KV  intermediate     parameters     cut  trained  at the end  writing, tokens/s'
        texts = ', '.join(self.source_losses)
        rows = [f'mean loss over {texts}; source {mean(self.source_losses.values()):.3f}', head]
        for each in self.candidates:
            sizes = [getattr(each.shape, key) for key in KEYS]
            trained = f'{each.trained_loss:.3f}' if each.curve else '-'
            notes = ["source's proportions"] if each.proportional else []
            notes += [] if each.is_allowed(self.latency) else ['too slow']
            rows.append(
                f'{sizes[0]:6d}  {sizes[1]:6d}  {sizes[2]:5d}  {sizes[3]:2d}  {sizes[4]:12d}  {each.parameters:13,d}  '
                f'{each.cut_loss:6.3f}  {trained:>7}  {_extrapolated_loss(each.extrapolated):>10}  '
                f'{each.speed["generate"]:17.1f}  {", ".join(notes)}'.rstrip()
            )
        return rows

    def lines(self) -> list[str]:
        """The table, what it says, and a target to paste for each budget."""
        lines = self.table()
        for budget in self.budgets:
            agreement = self.order_agreement(budget)
            if agreement is not None:
                found, low, high = agreement
                lines.append(
                    f'{budget}: order of {len(self.trained(budget))} candidates before and after training: rank '
                    f'correlation {found:.2f} ({low:.2f} to {high:.2f} where candidates are drawn anew, 90 %)'
                )
        worse = [each for each in self.candidates if each.curve and each.trained_loss > each.cut_loss]
        if worse:
            lines.append(
                f'{len(worse)} of the trained candidates ended above where their cuts began, so this training tells '
                'nothing of them: lower --learning-rate, or raise --batch-size'
            )
        factors = [each.extrapolated['factor'] for each in self.candidates if each.extrapolated]
        if factors:
            lines.append(f'"at the end": {max(factors):,.0f} times more tokens than were trained on, +- 90 % interval')
        left_open = [each for each in self.candidates if each.curve and not each.extrapolated]
        if self.tokens and left_open:
            lines.append(
                f'the end of {len(left_open)} candidates is left open: their losses do not keep falling in training; '
                'give more --steps, a lower --learning-rate, or a larger --batch-size'
            )
        for budget in self.budgets:
            best = self.best(budget)
            if best is None:
                fastest = min(each.milliseconds for each in self.candidates if each.budget == budget)
                lines += [
                    '',
                    f'{budget}: no candidate is fast enough: the fastest takes {fastest:,.1f} ms per token; allow a '
                    'longer --latency, or a smaller budget',
                ]
            else:
                lines += ['', f'{budget}: the best is {name_of(best.shape)}. In a YAML:', '    target:']
                lines += [f'      {key}: {size}' for key, size in target_of(best.shape).items()]
                lines += self._by_text(best)
                lines += self._per_byte(best)
                if self.source is not None:
                    lines += shape_guidance(self.source, best.shape, best.parameters / self.source_parameters)
        if self.trimmed:
            lines += ['', f'All of this is for a model {self.trimmed}; prepare the data with its tokenizer.']
        return lines

    def _per_byte(self, candidate: Candidate) -> list[str]:
        """Mean losses over texts of the source and of a candidate, by the byte of text."""
        if not self.bytes_per_token:
            return []
        losses = {'source': self.source_losses, 'cut': candidate.losses}
        if candidate.curve:
            losses['trained'] = candidate.curve[-1]['losses']
        bits = {
            when: mean(loss / math.log(2) / self.bytes_per_token[name] for name, loss in each.items())
            for when, each in losses.items()
        }
        listed = ', '.join(f'{when} {value:.3f}' for when, value in bits.items())
        return [f'bits per byte, which compare with those of another vocabulary: {listed}']

    def _by_text(self, candidate: Candidate) -> list[str]:
        """Losses of the source and of a candidate, a line per text where there are several."""
        if len(self.source_losses) < 2:
            return []
        width, lines = max(map(len, self.source_losses)), ['nats per token of each text, source to cut:']
        for name, loss in self.source_losses.items():
            trained = f', trained {candidate.curve[-1]["losses"][name]:.3f}' if candidate.curve else ''
            lines.append(f'  {name:{width}}  {loss:.3f} to {candidate.losses[name]:.3f}{trained}')
        return lines

    def as_record(self) -> dict[str, Any]:
        """Plain types, for result.json."""
        return {
            'source_losses': self.source_losses,
            'bytes_per_token': self.bytes_per_token,
            'order_agreement': {budget: self.order_agreement(budget) for budget in self.budgets},
            'candidates': [dataclasses.asdict(each) for each in self.candidates],
        }

    def picture(self) -> str:
        """An SVG of two panels: loss against tokens/s and against parameters, with the Pareto front of each.

        The loss is that after training where some candidates were trained, and only those are shown then.
        """
        trained = [each for each in self.candidates if each.curve]
        shown = trained or self.candidates
        losses = [each.trained_loss if trained else each.cut_loss for each in shown]
        when = f'after {shown[0].curve[-1]["step"]} steps' if trained else 'not trained'
        panels = []
        for title, x_label, x, larger in (
            ('Loss against speed', 'tokens/s, writing', [each.speed['generate'] for each in shown], True),
            ('Loss against size', 'parameters', [float(each.parameters) for each in shown], False),
        ):
            groups: dict[str, list[tuple[float, float, str]]] = {}
            for each, place, loss in zip(shown, x, losses):
                label = "source's proportions" if each.proportional else 'other shapes'
                groups.setdefault(label, []).append((place, loss, name_of(each.shape)))
            front = [(x[i], losses[i]) for i in pareto_front(x, losses, larger)]
            panels.append(scatter_panel(title, groups, front, x_label, f'nats per token, {when}'))
        return side_by_side(panels)


def pareto_front(x: Sequence[float], loss: Sequence[float], larger_is_better: bool) -> list[int]:
    """Indices of the points that no other one beats in both: by rising x."""
    order = sorted(range(len(x)), key=lambda i: (-x[i] if larger_is_better else x[i], loss[i]))
    front: list[int] = []
    for index in order:
        if not front or loss[index] < loss[front[-1]]:
            front.append(index)
    return sorted(front, key=lambda i: x[i])


def _rank_correlation(pairs: np.ndarray) -> float:
    """Spearman's, of two columns; equal values share a rank."""
    from scipy.stats import rankdata

    return float(np.corrcoef(*rankdata(pairs, axis=0).T)[0, 1])


def _extrapolated_loss(extrapolated: dict[str, Any] | None) -> str:
    if not extrapolated:
        return '-'
    half = '' if extrapolated['high'] is None else f'+-{extrapolated["high"] - extrapolated["loss"]:.2f}'
    return f'{extrapolated["loss"]:.2f}{half}'
