"""Tiny pruning runs through Composer's Trainer, in this process or in one of their own.

usage: python -m benchmarks.gpu.runs DEVICE SOURCE OUT MODE [MODE ...]

Writes losses by mode, or why there are none, as JSON. Modes join words by ``+``: ``fsdp2``, ``checkpointing``,
``offload``; ``killed`` ends the process in its sixth batch, ``whole`` runs undisturbed and ``resumed`` goes on where
``killed`` stopped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault('FSDP_VERSION', '2')

import torch
from composer.core import Callback, State
from composer.devices import DeviceCPU, DeviceGPU
from composer.loggers import InMemoryLogger, Logger
from composer.utils import dist

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from tests.tiny_run import tiny_trainer

__all__ = ['TARGET', 'run', 'run_mode']

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
BATCHES, KILLED_IN = 12, 6


class ExactProducts(Callback):
    """float32 products without TF32, whatever has switched it on since the device was made."""

    def fit_start(self, state: State, logger: Logger) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


class Die(Callback):
    """The process is gone in the middle of a batch, as when it is killed from outside."""

    def after_loss(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    source: Path,
    device: str,
    batches: int = BATCHES,
    learning: str = 'lagrangian',
    precision: str = 'fp32',
    algorithms: tuple = (),
    learning_rate: float = 1e-4,
    **settings: Any,
) -> dict[str, Any]:
    """One pruning run, without TF32; returns its losses by batch, its trainer and what was logged."""
    log = InMemoryLogger()
    pruning = TargetedPruning(TARGET, mask_learning=learning, warmup='0.5dur', tolerance=1.0)
    callbacks = [ExactProducts(), *settings.pop('callbacks', ())]
    trainer = tiny_trainer(
        source,
        [pruning, *algorithms],
        batches=batches,
        learning_rate=learning_rate,  # Adam would blow rounding up into different weights
        loggers=[log],
        callbacks=callbacks,
        device=DeviceGPU(allow_tf32=False) if device == 'cuda' else DeviceCPU(),
        precision=precision,
        **settings,
    )
    trainer.fit()
    trainer.close()
    losses = {time.batch.value: float(value) for time, value in log.data['loss/train/total']}
    return {'losses': losses, 'trainer': trainer, 'log': log.data}


def run_mode(mode: str, source: Path, device: str, folder: Path) -> dict[int, float]:
    """Losses by batch of one mode."""
    words, settings = mode.split('+'), {}
    if 'fsdp2' in words:
        settings['parallelism_config'] = {
            'fsdp': {
                'activation_checkpointing': 'checkpointing' in words,
                'activation_cpu_offload': 'offload' in words,
                'state_dict_type': 'full',
            }
        }
    if words[0] in ('killed', 'whole', 'resumed'):
        settings |= dict(
            run_name='resume',
            save_folder=str(folder / ('whole' if words[0] == 'whole' else 'killed')),
            save_interval='1ba',
            save_num_checkpoints_to_keep=1,
            autoresume=words[0] == 'resumed',
            deterministic_mode=True,
            seed=17,
            callbacks=[Die()] if words[0] == 'killed' else [],
        )
    return run(source, device, **settings)['losses']


def main() -> None:
    device, source, out, modes = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    dist.initialize_dist('gpu' if device == 'cuda' else 'cpu')
    results: dict[str, Any] = {'backend': torch.distributed.get_backend()}
    for mode in modes:
        try:
            results[mode] = run_mode(mode, source, device, out.parent)
        except Exception as error:  # the other modes still run
            results[mode] = f'{type(error).__name__}: {error}'
        out.write_text(json.dumps(results), encoding='utf-8')


if __name__ == '__main__':
    main()
