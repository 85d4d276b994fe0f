"""What a run that was killed between its last checkpoint and its end had still to do.

Composer refuses to train a run that is over, before any callback hears of its end. So the export is made up for as soon
as the checkpoint is loaded, with every rank there. An evaluation is not: only Composer's Trainer has the loop for it,
which a callback does not reach. So it is told that it is missing, and the card says of what batch its losses are.
"""

from __future__ import annotations

import logging

from composer.core import Event, State
from composer.loggers import Logger

from llmshearing.algorithms.targeted_pruning import find_pruning
from llmshearing.callbacks.console_progress import ConsoleProgress
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.callbacks.run_report import RunReport
from llmshearing.metrics.last_losses import last_losses
from llmshearing.metrics.logger import metrics_of
from llmshearing.utils.ranks import from_rank_0

__all__ = ['make_up_missed_end']

log = logging.getLogger(__name__)


def make_up_missed_end(state: State, logger: Logger) -> bool:
    """Exports what the run did not, and has it told and drawn as at the end of any run.

    Args:
        state (State): With the last checkpoint loaded.
        logger (Logger): Of the run.

    Returns:
        bool: Whether there was something left to do.

    Raises:
        ValueError: As :class:`ExportPruned` at the start and the end of a run.
    """
    exports = [callback for callback in state.callbacks if isinstance(callback, ExportPruned)]
    # Rank 0 writes; other nodes may not see the place.
    is_missing = from_rank_0(lambda: any(export.overwrite or not export.folder.exists() for export in exports))
    pruning = find_pruning(state)
    if pruning is None or not is_missing:
        return False
    log.warning(
        'Training is over at batch %d; only the export was left to do. To train on, give a longer max_duration.',
        state.timestamp.batch.value,
    )
    losses_at = last_losses(state, metrics_of(logger))[1]
    if losses_at is not None and losses_at < state.timestamp.batch.value:
        log.warning(
            'The run was stopped before its evaluation after batch %d, which is not made up for: the card tells the '
            'losses after batch %d, and a last update of the mixture is in neither metrics nor weights_file.',
            state.timestamp.batch.value,
            losses_at,
        )
    tellers = [callback for callback in state.callbacks if isinstance(callback, ConsoleProgress | RunReport)]
    for event in (Event.FIT_START, Event.FIT_END):
        pruning.apply(event, state, logger)
        for callback in exports + tellers:
            callback.run_event(event, state, logger)
    return True
