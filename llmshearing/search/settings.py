"""What decides a search, checked before anything is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llmshearing.cut.settings import CutSettings
from llmshearing.models.shapes import TARGET_KEYS
from llmshearing.utils.checks import check_integer, check_number
from llmshearing.utils.suggestions import refuse_unknown

__all__ = ['SearchSettings']

LEAST_STEPS = 3  # of a curve that the budget law can be fitted to
FREE = ('batch_size', 'candidates', 'latency', 'learning_rate', 'steps', 'tokens', 'train')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What decides a search, beside source, budgets and text.

    Attributes:
        candidates (int): Shapes that are tried per budget; fewer where there are no more. Default: ``12``.
        tolerance (float): How far below its budget a shape may stay. Default: ``0.02``.
        multiple_of (int | None): Step of hidden and intermediate size. Default: 64, or less as for ``cut``.
        pins (Mapping[str, int]): Sizes that all candidates have, under their names in a target. With ``vocab_size`` the
            source is trimmed first.
        least (Mapping[str, int]): Smallest sizes that candidates may have.
        most (Mapping[str, int]): Largest sizes that candidates may have.
        uneven (float): The axis of which most is kept keeps at most so many times the share of the one of which least
            is kept. Default: ``2.0``.
        kv_cache (int | None): Most bytes of KV cache per token, in bfloat16, of layers without a sliding window.
            Default: no limit.
        latency (float | None): Most milliseconds per generated token on this machine. Default: no limit.
        steps (int): Steps of training of the best candidates; 0 for none. Default: ``0``.
        train (int): Candidates per budget that are trained; the one nearest to the source's proportions is always among
            them. Default: ``3``.
        batch_size (int): Sequences per step. Default: ``8``.
        learning_rate (float): Peak learning rate. Default: ``5e-4``.
        tokens (int | None): Tokens of the real run that losses are extrapolated to. Default: none.
        cut (CutSettings): How candidates are cut and compared.

    Raises:
        ValueError: For a value that is not possible.
    """

    candidates: int = 12
    tolerance: float = 0.02
    multiple_of: int | None = None
    pins: Mapping[str, int] = dataclasses.field(default_factory=dict)
    least: Mapping[str, int] = dataclasses.field(default_factory=dict)
    most: Mapping[str, int] = dataclasses.field(default_factory=dict)
    uneven: float = 2.0
    kv_cache: int | None = None
    latency: float | None = None
    steps: int = 0
    train: int = 3
    batch_size: int = 8
    learning_rate: float = 5e-4
    tokens: int | None = None
    cut: CutSettings = dataclasses.field(default_factory=CutSettings)

    def __post_init__(self) -> None:
        for name, least in (('candidates', 1), ('steps', 0), ('train', 1), ('batch_size', 1)):
            check_integer(f'--{name.replace("_", "-")}', getattr(self, name), least)
        for name in ('multiple_of', 'kv_cache', 'tokens'):
            if getattr(self, name) is not None:
                check_integer(f'--{name.replace("_", "-")}', getattr(self, name), 1)
        check_number('--tolerance', self.tolerance, 0, 0.99, above=True)
        check_number('--uneven', self.uneven, 1)
        check_number('--learning-rate', self.learning_rate, 0, above=True)
        if self.latency is not None:
            check_number('--latency', self.latency, 0, above=True)
        for option, sizes in (('--pin', self.pins), ('--limit', {**self.least, **self.most})):
            if option == '--limit' and 'vocab_size' in sizes:
                raise ValueError(
                    '--limit: vocab_size is pinned or left as it is; --pin vocab_size=N trims the source to N tokens '
                    'first. Searches with several N compare by the bits per byte that they print.'
                )
            refuse_unknown(option, sizes, (*TARGET_KEYS, 'vocab_size'))
            for key, value in sizes.items():
                check_integer(f'{option} {key}', value, 1)
        for key in set(self.least) & set(self.most):
            if self.least[key] > self.most[key]:
                raise ValueError(f'--limit {key}={self.least[key]}:{self.most[key]}: the smaller size comes first.')
        for key in set(self.pins) & ({*self.least, *self.most}):
            raise ValueError(f'{key} is pinned and limited; keep one of --pin and --limit for it.')
        if self.tokens is not None and self.steps < LEAST_STEPS:
            raise ValueError(
                f'--tokens: losses are extrapolated from a curve of at least {LEAST_STEPS} steps; give --steps as '
                'well, such as 50.'
            )

    def as_record(self) -> dict[str, Any]:
        """What decides the measurement of a cut, as plain types: a search with the same record may go on.

        How many candidates there are, how they are trained, and what is told of them in the end may change.
        """
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE}
