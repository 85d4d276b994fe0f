"""``stop_on_sigterm``: a run that is told to end saves a checkpoint first.

Schedulers send SIGTERM before they pull a node. Composer ends at once on SIGTERM, and what was trained since the last
checkpoint is lost. With this callback the batch in hand is finished, a checkpoint is saved, and all ranks leave
together with exit code 143. The time it takes is that of one batch, of an evaluation if one is due, and of saving and
uploading: the scheduler's grace period (and, if Composer's launcher is told and not the ranks, the 30 s that it gives
them) must suffice, else the run ends as without it, and the last regular checkpoint stands.

A run whose last batch is done goes on to its end instead: it only has to evaluate and to export, and could not be
resumed from a checkpoint after its last batch, because nothing is left to train.
"""

from __future__ import annotations

import logging
import signal
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.compat.composer import checkpoint_savers

__all__ = ['StopOnSigterm']

log = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM


class StopOnSigterm(Callback):
    """Saves and leaves after the batch during which any rank was sent SIGTERM, unless that was the last.

    Raises:
        ValueError: At the start, if the run saves no checkpoints.
        SystemExit: With code 143, after the checkpoint.
    """

    def __init__(self) -> None:
        self._told = False
        self._leaving = False
        self._previous: Any = signal.SIG_DFL

    def fit_start(self, state: State, logger: Logger) -> None:
        if not checkpoint_savers(state):
            raise ValueError('stop_on_sigterm saves a checkpoint when told to stop: set save_folder, or remove it.')
        self._told = self._leaving = False
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Runs before the savers, which Composer puts after all callbacks of the user."""
        told = state.device.tensor_to_device(torch.tensor([int(self._told)]))
        dist.all_reduce(told, reduce_operation='MAX')
        if not told.item() or self._leaving or _trained(state):
            return
        log.warning('Told to stop: saving a checkpoint after batch %d.', state.timestamp.batch.value)
        self._leaving = True
        for saver in checkpoint_savers(state):
            saver.save_interval = lambda state, event: True

    def epoch_end(self, state: State, logger: Logger) -> None:
        self._leave(state, logger)

    def batch_start(self, state: State, logger: Logger) -> None:
        self._leave(state, logger)

    def fit_end(self, state: State, logger: Logger) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _leave(self, state: State, logger: Logger) -> None:
        if not self._leaving:
            return
        for saver in checkpoint_savers(state):
            saver.fit_end(state, logger)  # to a remote folder: waits for the upload, then moves the link to it
        dist.barrier()  # the launcher kills what is left once a rank has gone
        raise SystemExit(EXIT_CODE)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._told = True


def _trained(state: State) -> bool:
    """Whether no batch is left to train, also where the end of the epoch, still to be counted, ends the run."""
    timestamp = state.timestamp
    if state.dataloader_len is not None and timestamp.batch_in_epoch >= state.dataloader_len:
        timestamp = timestamp.to_next_epoch()
    return state.max_duration is not None and timestamp >= state.max_duration
