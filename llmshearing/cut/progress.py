"""A bar per stage, counted in passes over the decoder, which all stages have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from tqdm import tqdm

__all__ = ['stage_bar']


@contextlib.contextmanager
def stage_bar(decoder: nn.Module, name: str, passes: int, shown: bool) -> Iterator[None]:
    """Shows how many passes of a stage are done while the block runs; nothing where stderr is no terminal.

    Args:
        decoder (nn.Module): The module whose forward passes are counted.
        name (str): What is done.
        passes (int): About how many there will be.
        shown (bool): Whether to show it at all.
    """
    with tqdm(total=passes, desc=name, leave=False, disable=None if shown else True) as bar:
        with decoder.register_forward_hook(lambda *_: bar.update()):
            yield
