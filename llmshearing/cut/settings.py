"""What decides a cut, checked before anything is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from llmshearing.compat.torch import DTYPES
from llmshearing.masks.scores import method_by_axis
from llmshearing.models.units import AXES
from llmshearing.utils.checks import check_integer, check_one_of

__all__ = ['CutSettings']


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutSettings:
    """What decides a cut, beside source, target and text.

    Attributes:
        axes (Sequence[str] | None): Axes that may be cut, of ``layer``, ``hidden``, ``head``, ``intermediate`` and
            ``expert``. Default: all.
        keep_heads (bool | None): Cut no heads. Default: where the target is a budget.
        scores (str | Mapping[str, str] | None): How units are scored: a registered method
            (:mod:`~llmshearing.masks.scores`) for every axis it applies to, or one by axis. Axes without one go by
            activations, layers by block importance, and hidden dimensions of a learned basis by position.
        rotate (bool): Turn the residual stream to its principal directions first where hidden dimensions go and the
            family allows it. A basis that ``llmshearing rotate --learn`` found stays. Default: ``True``.
        compensate (bool): Change weights so that what stays takes over from what goes. Default: ``True``.
        seed (int): Which passages of the text are taken, and ``random`` scores. Default: ``17``.
        dtype (str | None): Of the written weights. Default: the source's.
        tokens (int): To choose units by. Default: ``8192``.
        held_out (int): Tokens to measure losses on. Default: ``4096``.
        seq_len (int): Tokens per sequence. Default: ``256``.
        text_key (str): Field or column that holds the text. Default: ``'text'``.

    Raises:
        ValueError: For a value that is not possible.
    """

    axes: Sequence[str] | None = None
    keep_heads: bool | None = None
    scores: str | Mapping[str, str] | None = None
    rotate: bool = True
    compensate: bool = True
    seed: int = 17
    dtype: str | None = None
    tokens: int = 8192
    held_out: int = 4096
    seq_len: int = 256
    text_key: str = 'text'

    def __post_init__(self) -> None:
        self.scores_by_axis()
        if self.dtype is not None:
            check_one_of('--dtype', self.dtype, DTYPES)
        check_integer('--seed', self.seed, 0, 2**63 - 1)
        for name in ('tokens', 'held_out'):
            check_integer(name, getattr(self, name), 1)
        check_integer('seq_len', self.seq_len, 2)

    def scores_by_axis(self, learned_basis: bool = False) -> dict[str, str]:
        """A method for every axis there is, by :func:`~llmshearing.masks.scores.method_by_axis`."""
        return method_by_axis(self.scores or {}, AXES, learned_basis)
