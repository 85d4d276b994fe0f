"""What decides a rotation's result, checked against the source before anything is computed."""

from __future__ import annotations

import dataclasses
import math

from llmshearing.compat.torch import DTYPES
from llmshearing.rotation.source_folder import SourceFolder
from llmshearing.utils.checks import check_integer, check_one_of

__all__ = ['DEFAULT_FIXED_AXES', 'DEFAULT_LENGTH', 'RotationSettings', 'default_fixed_axes']

DEFAULT_FIXED_AXES = 64
DEFAULT_LENGTH = 512


def default_fixed_axes(hidden_size: int) -> int:
    """Axes of a tied source to fix at first: at most a quarter, as what is fixed is not rotated."""
    return min(DEFAULT_FIXED_AXES, hidden_size // 4)


@dataclasses.dataclass(frozen=True)
class RotationSettings:
    """What decides the result.

    Attributes:
        keep (int | None): Hidden size that the source is to be cut to; needed to learn, otherwise only marked.
        learn (int): Steps of the learned subspace; 0 leaves the principal directions.
        fixed_axes (int | None): Axes of a tied source that stay unrotated. Default: 64, at most a quarter of them,
            doubled until one gain for all others costs next to nothing.
        untie (bool): Give a tied source's LM head weights of its own.
        dtype (str | None): Of the written weights; default: the source's.
        tokens (int): To look at.
        held_out (int): Tokens to measure losses on.
        seq_len (int | None): Tokens per sequence of plain text. Default: 512, or the source's positions where they are
            fewer.
        batch_tokens (int): Tokens in a forward pass, and in a step of learning.
        text_key (str): Field or column that holds the text.
    """

    keep: int | None = None
    learn: int = 0
    fixed_axes: int | None = None
    untie: bool = False
    dtype: str | None = None
    tokens: int = 65_536
    held_out: int = 8_192
    seq_len: int | None = None
    batch_tokens: int = 2_048
    text_key: str = 'text'

    def checked(self, source: SourceFolder) -> RotationSettings:
        """The settings completed for a source.

        Raises:
            ValueError: For a value that does not fit it; says what would.
        """
        hidden, tied = source.parts.hidden_size, source.parts.tied
        if self.keep is not None and not 0 < self.keep < hidden:
            raise ValueError(f'--keep {self.keep}: expected 1 to {hidden - 1}; the source has hidden_size {hidden}.')
        if self.learn and self.keep is None:
            raise ValueError('--learn needs --keep, the hidden_size that the subspace is learned for.')
        if self.untie and not tied:
            raise ValueError("--untie: the source's LM head has weights of its own already; leave it out.")
        if self.fixed_axes is not None and (not tied or self.untie):
            raise ValueError('--fixed-axes is for tied embeddings that stay tied; leave it out.')
        fixed = self.fixed_axes
        if tied and not self.untie:
            fixed = default_fixed_axes(hidden) if fixed is None else fixed
            if not 0 <= fixed <= hidden:
                raise ValueError(f'--fixed-axes {fixed}: expected 0 to {hidden}; the source has hidden_size {hidden}.')
        if self.dtype is not None:
            check_one_of('--dtype', self.dtype, DTYPES)
        for name in ('tokens', 'held_out', 'batch_tokens'):
            check_integer(f'--{name.replace("_", "-")}', getattr(self, name), 1)
        positions = getattr(source.config, 'max_position_embeddings', None) or math.inf
        seq_len = int(min(DEFAULT_LENGTH, positions)) if self.seq_len is None else self.seq_len
        if not 2 <= seq_len <= positions:
            raise ValueError(f"--seq-len {seq_len}: expected 2 to {positions}, the source's positions.")
        return dataclasses.replace(self, fixed_axes=fixed, seq_len=seq_len)
