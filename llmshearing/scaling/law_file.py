"""LAW.json: a fitted P2 law, with what is needed to say how far its predictions can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmshearing.scaling.curves import Curve
from llmshearing.scaling.fields import read_json
from llmshearing.scaling.fit_quality import fit_report
from llmshearing.scaling.post_training import CONSTANTS, PostTrainingLaw, fit_post_training

__all__ = ['RANGES', 'law_to_json', 'read_law']

LAW_VERSION = 1
RANGES = ('params_before', 'pruning_rate', 'tokens')
_SINGLES = ('single_size', 'single_rate')


def law_to_json(law: PostTrainingLaw, runs: Sequence[Curve], notes: list[str]) -> dict:
    """The content of LAW.json, with the constants that each run left out gives where there are three or more."""
    others = [[*runs[:i], *runs[i + 1 :]] for i in range(len(runs))] if len(runs) > 2 else []
    return {
        'law': 'p2',
        'version': LAW_VERSION,
        'constants': law.constants,
        'range': {name: list(getattr(law, name)) for name in RANGES},
        **{name: getattr(law, name) for name in _SINGLES},
        'pairs': [list(pair) for pair in law.pairs],
        'leave_one_out': [fit_post_training(rest, near=law).constants for rest in others],
        'fit': fit_report(law, runs),
        'notes': notes,
    }


def read_law(path: str) -> tuple[PostTrainingLaw, list[PostTrainingLaw]]:
    """The law in LAW.json, and those with one run left out.

    Raises:
        ValueError: Not a file that ``budget fit`` wrote.
    """
    content = read_json(path)
    law, version = content.get('law'), content.get('version')
    if law is not None and (law, version) != ('p2', LAW_VERSION):
        raise ValueError(f'{path}: expected law p2, version {LAW_VERSION}; got {law}, {version}')
    try:
        where: list[Any] = [tuple(map(float, content['range'][name])) for name in RANGES]
        singles: list[Any] = [bool(content[name]) for name in _SINGLES]
        pairs = tuple((float(size), float(rate)) for size, rate in content.get('pairs', ()))
        laws = [
            PostTrainingLaw({name: float(constants[name]) for name in CONSTANTS}, *where, *singles, pairs=pairs)
            for constants in [content['constants'], *content['leave_one_out']]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: not a law written by `llmshearing budget fit` ({error!r})') from error
    return laws[0], laws[1:]
