"""Streams in turn, each read no further than was asked for."""

from __future__ import annotations

from itertools import islice

from llmshearing.utils.interleave import interleave


def test_streams_take_turns_until_all_are_empty():
    assert list(interleave(['ab', '', 'cdef', 'g'])) == ['a', 'c', 'g', 'b', 'd', 'e', 'f']
    assert list(interleave([])) == []


def test_nothing_is_read_ahead():
    read = []

    def stream(name):
        for number in range(3):
            read.append(f'{name}{number}')
            yield read[-1]

    assert list(islice(interleave(map(stream, 'ab')), 3)) == ['a0', 'b0', 'a1'] == read
