"""What all parts are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

__all__ = ['Settings']


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run of the command.

    Attributes:
        device (str): ``'cuda'`` or ``'cpu'``.
        quick (bool): Tiny shapes.
        work (Path): Folder for what is made on the way; kept, so that a later call finds it.
        source (Path | None): Model folder, or GGUF file of SmolLM2, that ``good`` prunes; None trains a small LLaMA.
        text (Path | None): Folder of .jsonl files, one per domain, for ``good``; None takes the installation's own.
        steps (tuple[int, ...]): Budgets of ``good``.
        seeds (tuple[int, ...]): Seeds of ``good``.
    """

    device: str
    quick: bool
    work: Path
    source: Path | None = None
    text: Path | None = None
    steps: tuple[int, ...] = (400,)
    seeds: tuple[int, ...] = (1,)
