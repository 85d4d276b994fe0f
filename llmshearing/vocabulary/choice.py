"""Which tokens stay: those that shorten the text most, and no text that is made of them may change.

**BPE.** A text has as many tokens as characters (or bytes), less one for every merge that is done. So a token is worth
the number of times that it is *made* on the text, as a part of others too. The N most-made tokens leave the fewest if
words fall back to the parts that they were made of; a merge that had no chance before may shorten some a little more.
A part is made at least as often as the whole, so tokens in this order have their derivations before them: any number
of them is closed, and any size is met exactly (:mod:`llmshearing.vocabulary.derivation` proves what that is good for).

**Unigram.** The tokens of a text are the path of pieces with the largest sum of scores. A piece is worth its count.
Nothing has to be closed: let a text's path B consist of kept pieces. Dropping other pieces takes other paths away. An
unknown character costs 10 more than the piece of least score, in `tokenizers`; that piece stays, so it costs what it
did. New paths appear only where a character has lost its own piece, and is unknown instead: each has less than the path
with that piece had. B keeps its score, so it is the best still. Among equal scores the search takes, at every place,
the first; what was first among more is first among fewer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from llmshearing.vocabulary.derivation import Derivations
from llmshearing.vocabulary.tokenizer_file import TokenizerFile

__all__ = ['Ranking', 'rank_tokens']


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The tokens in the order in which they stay.

    Attributes:
        needed (tuple[int, ...]): Ids that stay at any size.
        others (tuple[int, ...]): All other ids, the most useful first.
        own_place (frozenset[int]): Ids of the tokenizer's model, which stand first, before added tokens.
        tokens (frozenset[int]): Ids that are tokens; rows of the embedding without one stand last.
    """

    needed: tuple[int, ...]
    others: tuple[int, ...]
    own_place: frozenset[int]
    tokens: frozenset[int]

    def kept(self, size: int) -> list[int]:
        """The ids that stay at a size, in the order of their new ids.

        The order is the old one, except that `tokenizers` numbers the model's tokens before those added to it.

        Args:
            size (int): From ``len(needed)`` to all.
        """
        kept = [*self.needed, *self.others[: size - len(self.needed)]]
        return sorted(kept, key=lambda number: (number not in self.own_place, number not in self.tokens, number))


def rank_tokens(file: TokenizerFile, counts: Mapping[int, int], named: Iterable[int], wished: Sequence[str]) -> Ranking:
    """Ranks the tokens of a tokenizer by their use on a text.

    Args:
        file (TokenizerFile): The tokenizer.
        counts (Mapping[int, int]): How often each id is in the tokenized text.
        named (Iterable[int]): Ids that must stay because a config names them.
        wished (Sequence[str]): Tokens that must stay because the user wants them.

    Raises:
        ValueError: For a wished token that the tokenizer does not have.
    """
    for token in wished:
        if token not in file.ids:
            raise ValueError(
                f'--keep: the tokenizer has no token {token!r}; write one a line as it stands in tokenizer.json; '
                'with escapes, such as \\n, in its quotes.'
            )
    needed = {*file.needed_ids(), *named, *(file.ids[token] for token in wished)}
    if file.kind == 'Unigram':
        scores = file.scores
        order = sorted(file.model_ids, key=lambda t: (-counts.get(file.model_ids[t], 0), -scores[t], file.model_ids[t]))
    else:
        derivations = Derivations(file)
        uses = derivations.uses({t: counts[number] for t, number in file.model_ids.items() if counts.get(number)})
        order = sorted(file.model_ids, key=lambda t: (-uses[t], derivations.last_rank(t), len(t), file.model_ids[t]))
        for token, number in file.model_ids.items():
            if number in needed:
                needed.update(file.model_ids[part] for part in derivations.of(token) or ())
    others = (file.model_ids[token] for token in order)
    return Ranking(
        tuple(sorted(needed)),
        tuple(number for number in others if number not in needed),
        frozenset(file.model_ids.values()),
        frozenset(file.ids.values()),
    )
