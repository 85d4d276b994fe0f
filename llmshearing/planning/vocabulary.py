"""A plan for a source whose vocabulary is trimmed first: its config with fewer tokens, and the command for it.

``vocab_size`` is no axis of pruning, since tokenizer and data change with it. It is one of planning: an embedding may
be a third of a small model, so a budget is another shape behind a smaller vocabulary.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from llmshearing.utils.checks import is_integer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['trim_note', 'with_vocabulary']

TOKEN_IDS = ('pad_token_id', 'bos_token_id', 'eos_token_id')


def with_vocabulary(config: PretrainedConfig, vocab_size: Any) -> PretrainedConfig:
    """A copy of the source's config with fewer tokens; ids of special tokens that are not among them are left out.

    Raises:
        ValueError: If the source has fewer, or it is no whole number.
    """
    if not is_integer(vocab_size) or not 0 < vocab_size <= config.vocab_size:
        raise ValueError(
            f'target: vocab_size={vocab_size!r} is not possible; a whole number from 1 to {config.vocab_size}, which '
            'the source has.'
        )
    trimmed = copy.deepcopy(config)
    trimmed.vocab_size = vocab_size
    for name in TOKEN_IDS:
        token = getattr(trimmed, name, None)
        if isinstance(token, int) and token >= vocab_size:
            setattr(trimmed, name, None)
    return trimmed


def trim_note(source: int, trimmed: int) -> str:
    """What has to be done before anything that the plan says is true, by the tokens before and after."""
    return (
        f'vocab_size: all of this is for a source with {trimmed:,} of its {source:,} tokens. Make it first, with '
        f'`llmshearing trim-vocab SOURCE --data TEXT --size {trimmed} --output FOLDER`, and prepare the data with its '
        'tokenizer.'
    )
