"""Scores: the importance of every unit from a few calibration batches, by registered methods.

They are the order in which masks start, or the whole decision of a one-shot pruner. The methods of this package are in
:mod:`~llmshearing.masks.score_methods`. Whoever has another one registers a :class:`ScoringMethod`, in Python
(``scoring_methods('mine', func=ScoringMethod(function))``) or by an entry point of the group
``llmshearing_scoring_methods``, and names it in ``scores``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import catalogue
import torch
from torch import Tensor, nn

from llmshearing.models.cuttable import Cutter, one_rank
from llmshearing.models.units import AXES
from llmshearing.utils.checks import of_another_package

__all__ = [
    'IGNORED_LABEL',
    'RECOMMENDED',
    'RECOMMENDED_SCORES',
    'Calibration',
    'ScoringMethod',
    'count_labels',
    'method_by_axis',
    'score_units',
    'scoring_methods',
]

RECOMMENDED = 'recommended'  # the best by axis of benchmarks/results/cut.md, "By axis and scores", and runs from them
RECOMMENDED_SCORES = {**dict.fromkeys(AXES, 'activation'), 'layer': 'block_importance', 'expert': 'reap'}
IGNORED_LABEL = -100  # of PyTorch's cross-entropy

scoring_methods = catalogue.create('llmshearing', 'scoring_methods', entry_points=True)


@dataclasses.dataclass(frozen=True)
class ScoringMethod:
    """A way of scoring units.

    Attributes:
        score (Callable): From a :class:`Calibration` and names of axes to scores by axis, mask-shaped, on any device,
            the same on every rank; higher is more important.
        axes (tuple[str, ...]): Axes that it applies to.
        needs_gradients (bool): It runs backward passes, for which memory is reckoned with.
    """

    score: Callable[[Calibration, Sequence[str]], dict[str, Tensor]]
    axes: tuple[str, ...] = AXES
    needs_gradients: bool = False


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What scores are computed from.

    Attributes:
        cutter (Cutter): Of the source model, which is not wrapped by DDP.
        batches (Sequence[Any]): This rank's share of each batch, mappings of tensors with ``input_ids`` and ``labels``
            on the model's device; as many, and of the same sizes, on every rank.
        loss (Callable | None): Mean loss over the labels of a batch. Default: that of a Hugging Face model.
        reduce (Callable): Averages a tensor on the model's device over ranks, in place. Default: there is one rank.
        seed (int): For ``random``. Default: ``17``.
        microbatch_size (int | None): Sequences that one pass takes; None for all of a batch's. Default: ``None``.
    """

    cutter: Cutter
    batches: Sequence[Any]
    loss: Callable[[Any], Tensor] | None = None
    reduce: Callable[[Tensor], None] = one_rank
    seed: int = 17
    microbatch_size: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.cutter.model.parameters()).device

    def loss_of(self, batch: Any) -> Tensor:
        """Mean loss over the labels of a batch under the masks that are set."""
        if self.loss is None:
            return self.cutter.model(**batch, use_cache=False).loss
        return self.loss(batch)

    def parts(self, batch: Any) -> list[Any]:
        """A batch in micro-batches."""
        count = len(batch['input_ids'])
        size = self.microbatch_size or count
        return [
            {key: value[start : start + size] if isinstance(value, Tensor) else value for key, value in batch.items()}
            for start in range(0, count, size)
        ]

    def passes(self) -> Iterator[tuple[Any, float]]:
        """Every micro-batch of every batch with its share in the mean over all sequences of this rank."""
        total = sum(len(batch['input_ids']) for batch in self.batches)
        for batch in self.batches:
            for part in self.parts(batch):
                yield part, len(part['input_ids']) / total

    @torch.no_grad()
    def watch(self, watched: Iterable[tuple[nn.Module, Callable[[float, Tensor, Tensor], None]]]) -> None:
        """Runs all passes without masks, and has what modules read and give looked at.

        Args:
            watched (Iterable[tuple[nn.Module, Callable]]): Modules, each with a function that is called after its every
                forward pass: with the share of the pass as in :meth:`passes`, what the module read, and what it gave.
        """
        share = 0.0

        def hook(see: Callable, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
            see(share, args[0] if args else kwargs['hidden_states'], out[0] if isinstance(out, tuple) else out)

        self.cutter.set_masks(None)
        with ExitStack() as hooks:
            for module, see in watched:
                hooks.enter_context(module.register_forward_hook(partial(hook, see), with_kwargs=True))
            for part, share in self.passes():
                self.loss_of(part)

    def backward(self, batch: Any) -> None:
        """Backward passes of a batch; averaged over ranks, the gradients are those of its mean loss over all labels."""
        parts = self.parts(batch)
        labels = torch.stack([count_labels(part) for part in parts])
        everywhere = labels.sum().float()
        self.reduce(everywhere)
        for part, share in zip(parts, labels / everywhere):
            (self.loss_of(part) * share).backward()

    def average(self, value: Tensor) -> Tensor:
        """A tensor averaged over ranks, on the CPU."""
        value = value.to(self.device)
        self.reduce(value)
        return value.cpu()


def count_labels(batch: Any) -> Tensor:
    """How many labels of a batch have a loss; the first of a sequence has no prediction."""
    return (batch['labels'][:, 1:] != IGNORED_LABEL).sum()


def method_by_axis(
    scores: str | Mapping[str, str], pruned: Collection[str], learned_basis: bool = False
) -> dict[str, str]:
    """Which method scores which pruned axis.

    Args:
        scores (str | Mapping[str, str]): One method for all axes, or a method by axis. Axes that are not named, or that
            the one method does not apply to, go by :data:`RECOMMENDED_SCORES`; with ``'recommended'``, all do.
        pruned (Collection[str]): The pruned axes.
        learned_basis (bool): Hidden dimensions stand in the order in which a learned basis wants them kept, so there
            ``'position'`` is what is recommended. Default: ``False``.

    Raises:
        ValueError: For an unknown method or axis, or a method that does not apply to its axis.
    """
    methods = scoring_methods.get_all()
    recommended = RECOMMENDED_SCORES | ({'hidden': 'position'} if learned_basis else {})
    result = {axis: recommended[axis] for axis in pruned}
    if scores == RECOMMENDED:
        return result
    chosen = dict.fromkeys(pruned, scores) if isinstance(scores, str) else scores
    for axis, method in chosen.items():
        if method not in methods:
            raise ValueError(
                f'scores: unknown method {method!r}; choose one of {", ".join([RECOMMENDED, *methods])}.'
                + of_another_package('method', 'scoring_methods')
            )
        if not isinstance(methods[method], ScoringMethod):
            raise ValueError(
                f'scores: {method} is registered as a {type(methods[method]).__name__}, expected a ScoringMethod; '
                f'register scoring_methods({method!r}, func=ScoringMethod(function)).'
            )
        if axis not in AXES:
            raise ValueError(f'scores: unknown axis {axis!r}; possible: {", ".join(AXES)}.')
        applies = axis in methods[method].axes
        if not applies and not isinstance(scores, str):
            raise ValueError(
                f'scores: {method} does not apply to {axis}; it applies to {", ".join(methods[method].axes)}.'
            )
        if applies and axis in pruned:
            result[axis] = method
    return result


def score_units(methods: Mapping[str, str], calibration: Calibration) -> dict[str, Tensor]:
    """Scores by the method of each axis, mask-shaped, float32 on CPU; leaves the model without masks and gradients."""
    scores = {}
    for method in dict.fromkeys(methods.values()):
        axes = [axis for axis in methods if methods[axis] == method]
        scores.update(scoring_methods.get(method).score(calibration, axes))
    calibration.cutter.set_masks(None)
    calibration.cutter.model.zero_grad(set_to_none=True)
    return {axis: scores[axis].float().cpu() for axis in methods}
