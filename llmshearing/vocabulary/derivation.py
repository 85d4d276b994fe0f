"""How BPE makes a token out of characters, and why a set of tokens closed under that changes no text made of it.

BPE merges, again and again, the leftmost of the adjacent pairs whose merge stands first in the list. The *derivation*
of a token t is what this makes on t's own text: its characters, every token in between, and t.

**Identity.** Let K be a set of tokens that has, with every token, its derivation, and keep the merges whose two parts
and result are in K, in their order. A word whose tokens are all in K is then made of the same tokens:

1. Two tokens of the result are never merged with each other, so each pair that is merged lies inside the text of one
   final token t; restricted to it, the merges are those of t alone, since the first of all pairs is the first of those
   inside. Hence every token that appears on the way is in the derivation of a final token, so in K, and every merge
   that is done was kept.
2. In each state the kept merges are a subset of all, and the first of all is among them, so it is the first of them.
   Step by step both do the same, and where no merge is left of all, none is left of the kept ones.

A word may be a whole text. ``ignore_merges`` (Llama 3) looks a word up before it merges: a kept word is found as
before, and one that was not found is not found now. The proof was written for this package; the order of merges is
that of `tokenizers` (models/bpe/word.rs), which the tests compare with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from llmshearing.vocabulary.tokenizer_file import TokenizerFile

__all__ = ['Derivations', 'derive']


def derive(text: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> tuple[list[str], list[tuple[str, int]]]:
    """Runs BPE on one word.

    Args:
        text (Sequence[str]): Its characters.
        ranks (Mapping[tuple[str, str], int]): Place of each merge in the list.

    Returns:
        tuple[list[str], list[tuple[str, int]]]: The tokens of the word, and those that merges made with the places of
        these merges, in their order.
    """
    tokens, made = list(text), []
    none = len(ranks)
    places = [ranks.get(pair, none) for pair in zip(tokens, tokens[1:])]
    while places and (first := min(places)) < none:
        at = places.index(first)
        tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]
        made.append((tokens[at], first))
        del places[at]
        if at > 0:
            places[at - 1] = ranks.get((tokens[at - 1], tokens[at]), none)
        if at < len(places):
            places[at] = ranks.get((tokens[at], tokens[at + 1]), none)
    return tokens, made


class Derivations:
    """The derivations of a BPE tokenizer's tokens."""

    def __init__(self, file: TokenizerFile):
        self.file = file
        self.ranks = {pair: rank for rank, pair in enumerate(file.merges)}
        self._known: dict[str, tuple[list[str] | None, int]] = {}

    def of(self, token: str) -> list[str] | None:
        """The token's characters and what merges make of them, itself last; None if merges do not end with it."""
        return self._find(token)[0]

    def last_rank(self, token: str) -> int:
        """Place of the last-standing merge of a derivation: -1 for a character, behind all where there is none."""
        return self._find(token)[1]

    def uses(self, counts: Mapping[str, int]) -> Counter[str]:
        """How often each token is made, or read as a character, on the way to the tokens of a text.

        Args:
            counts (Mapping[str, int]): How often each token is in the tokenized text.

        Returns:
            Counter[str]: Never less for a token than for one that it is a part of.
        """
        used: Counter[str] = Counter()
        for token, count in counts.items():
            made = self.of(token)
            for one, times in Counter([token] if made is None else made).items():
                used[one] += times * count
        return used

    def _find(self, token: str) -> tuple[list[str] | None, int]:
        if token not in self._known:
            found = None, len(self.ranks)
            if all(character in self.file.model_ids for character in token):
                tokens, made = derive(token, self.ranks)
                if len(tokens) == 1:
                    found = [*token, *(one for one, _ in made)], max((rank for _, rank in made), default=-1)
            self._known[token] = found
        return self._known[token]
