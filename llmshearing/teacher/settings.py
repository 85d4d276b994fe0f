"""What decides the bytes of a teacher's column beside teacher and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmshearing.compat.torch import DTYPES
from llmshearing.data.teacher_column import ColumnFormat, most_tokens
from llmshearing.utils.checks import check_integer, check_number, check_one_of

__all__ = ['TeachSettings']


@dataclass(frozen=True)
class TeachSettings:
    """Settings of :func:`~llmshearing.teacher.teach.teach`.

    Attributes:
        draws (int | None): Draws per token. Default: as many as 64 bytes hold.
        top_k (int | None): Keep the likeliest tokens in their place. Default: ``None``, draws.
        temperature (float): Divides the teacher's logits, as the run's will. Default: ``1.0``.
        seed (int): Of the draws. Default: 17.
        shared_vocab_size (int | None): The first so many tokens take part, for models that pad one vocabulary to
            different sizes. Default: ``None``, all of the teacher's.
        like (Path | None): Folder that trim-vocab wrote, whose tokens the data are made of; the teacher has all tokens.
        batch_tokens (int): Tokens in a forward pass. Default: 4096.
        dtype (str | None): In which the teacher computes. Default: bfloat16 on a GPU, float32 elsewhere.
        splits (tuple[str, ...] | None): Those to teach; others are copied. Default: all but ``eval``.

    Raises:
        ValueError: For a value that cannot be.
    """

    draws: int | None = None
    top_k: int | None = None
    temperature: float = 1.0
    seed: int = 17
    shared_vocab_size: int | None = None
    like: Path | None = None
    batch_tokens: int = 4096
    dtype: str | None = None
    splits: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.draws is not None and self.top_k is not None:
            raise ValueError(f'--draws {self.draws} and --top-k {self.top_k}: one of the two is kept; give one.')
        for option, value in (('--draws', self.draws), ('--top-k', self.top_k)):
            if value is not None:
                check_integer(option, value, 1, 1024)
        check_number('--temperature', self.temperature, 0, above=True)
        check_integer('--seed', self.seed, 0, 2**32 - 1)
        check_integer('--batch-tokens', self.batch_tokens, 1)
        if self.dtype is not None:
            check_one_of('--dtype', self.dtype, DTYPES)
        if self.like is not None and self.shared_vocab_size is not None:
            raise ValueError('--like says which tokens both have; leave --shared-vocab-size out.')

    def format(self, vocab_size: int) -> ColumnFormat:
        """The column for a distribution over so many tokens.

        Raises:
            ValueError: If there are fewer than ``top_k``.
        """
        if self.top_k is not None:
            check_integer('--top-k', self.top_k, 1, vocab_size)
        kind = 'draws' if self.top_k is None else 'top_k'
        return ColumnFormat(kind, self.draws or self.top_k or most_tokens(kind, vocab_size), vocab_size)
