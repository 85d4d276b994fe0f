"""Two runs whose losses are of tokens of different vocabularies: by byte of text, or apart.

A token of a larger vocabulary stands for more text and has the larger loss. So such losses are compared by byte, where
both runs note how many bytes of text a token of each evaluation set stands for; else each run has its own panels.
Training losses are of a mixture that changes, of which nobody notes the bytes: they are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmshearing.metrics.names import TRAIN_LOSS, eval_loss_name, mixture_name
from llmshearing.metrics.run_log import RunLog

__all__ = ['by_vocabulary']


def by_vocabulary(runs: Sequence[RunLog]) -> tuple[list[list[RunLog]], str]:
    """The runs that can be drawn together, and what a reader has to know of that, empty where nothing.

    Runs that do not note their vocabulary are taken for ones of the same.
    """
    if len({_noted(run).get('vocabulary') for run in runs} - {None}) < 2:
        return [[*runs]], ''
    converted = [one for run in runs if (one := _by_byte(run)) is not None]
    names = ' and '.join(run.name for run in runs)
    if len(converted) == len(runs):
        return [
            converted
        ], f'{names} have different vocabularies, so losses are per byte; training losses are left out.'
    told = (
        f'{names} have different vocabularies, and not both note the bytes of text in a token of each evaluation set: '
        'their losses cannot be compared, so each run has a chapter of its own.'
    )
    return [[run] for run in runs], told


def _noted(run: RunLog) -> dict:
    return run.state.get('tokenizer') or {}


def _by_byte(run: RunLog) -> RunLog | None:
    """A run with losses in nats per byte of text; None where it does not tell the bytes of an evaluation set."""
    bytes_per_token = _noted(run).get('bytes_per_token') or {}
    if not all(bytes_per_token.get(name) for name in (*run.domain_losses(), *run.names(mixture_name('loss', '')))):
        return None
    metrics = {name: series for name, series in run.metrics.items() if name != TRAIN_LOSS}
    for domain, size in bytes_per_token.items():
        for name in (eval_loss_name(domain), mixture_name('loss', domain), mixture_name('gap', domain)):
            if name in metrics:
                at, values = metrics[name]
                metrics[name] = at, values / size
    references, source_losses = (
        {name: loss / bytes_per_token[name] for name, loss in losses.items() if bytes_per_token.get(name)}
        for losses in (run.references, run.source_losses)
    )
    return replace(
        run, metrics=metrics, references=references, source_losses=source_losses, loss_unit='nats per byte of text'
    )
