"""Runs a tiny pruning on this process's share of each global batch; rank 0 saves what the test compares.

usage: worker.py SOURCE OUT MODE [MODE ...] with modes like ``ddp``, ``fsdp2`` and ``fsdp2+checkpointing``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault('FSDP_VERSION', '2')

import torch
from composer.core import DataSpec
from composer.loggers import InMemoryLogger
from composer.utils import dist
from torch.utils.data import DataLoader

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from tests.tiny_run import Sequences, sequences_spec, tiny_trainer

BATCHES = 8
SCORES = {
    'taylor': 'taylor',
    'activation': {'layer': 'block_importance', **dict.fromkeys(('hidden', 'kv_group', 'intermediate'), 'activation')},
    'perplexity': {'layer': 'perplexity', **dict.fromkeys(('hidden', 'kv_group', 'intermediate'), 'magnitude')},
}
TARGET = {'num_hidden_layers': 2, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


EXPERT_MODES = ('ddp', 'fsdp2+checkpointing')
RUNS = ('lagrangian', 'progressive', 'progressive+compensation', 'one_shot+compensation')


def run(source: Path, mode: str, learning: str, folder: Path) -> dict:
    """One of ``RUNS``; returns its losses per batch and the mask gradients the learner was given."""
    mask_learning, _, compensation = learning.partition('+')
    by_scores = mask_learning == 'one_shot'
    scores = {'layer': 'block_importance'} if by_scores else None
    settings = {'mask_learning': mask_learning, 'scores': scores, 'compensate': bool(compensation)}
    pruning = TargetedPruning(TARGET, warmup='4ba', **settings)
    parallelism = {'fsdp': {'activation_checkpointing': 'checkpointing' in mode}} if 'fsdp2' in mode else None
    log = InMemoryLogger()
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=BATCHES,
        learning_rate=1e-4,  # Adam would blow rounding up into different weights
        loggers=[log],
        parallelism_config=parallelism,
        callbacks=[ExportPruned(str(folder / f'{mode}-{learning}'), allow_unconverged=True)],
        eval_dataloader=_to_score_on() if by_scores else None,
    )
    gradients, update, kept_layers = [], pruning.learner.update, []

    def recording(grads, *args):
        gradients.append({axis: grad.clone() for axis, grad in grads.items()})
        kept_layers.append(len(getattr(trainer.state.model, 'module', trainer.state.model).cutter.plan.units.layers))
        return update(grads, *args)

    pruning.learner.update = recording
    trainer.fit()
    trainer.close()
    return {
        'losses': [value for _, value in log.data['loss/train/total']],
        'gradients': gradients,
        'kept_layers': kept_layers,
    }


def _to_score_on() -> DataSpec:
    data = Sequences(16, seed=5)
    return DataSpec(DataLoader(data, 4, sampler=dist.get_sampler(data, shuffle=False)))


def scored(source: Path, mode: str, scores: str | dict[str, str]) -> dict[str, torch.Tensor]:
    """Scores by axis and energies of norms of a run that starts from them, and its losses, the last of the cut model.

    Evaluation batches have the same size on every rank, so two ranks together have twice as large ones.
    """
    pruning, seen, log = (
        TargetedPruning(TARGET, scores=scores, calibration_batches=3, warmup='1ba'),
        {},
        InMemoryLogger(),
    )
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=2,
        learning_rate=1e-4,
        loggers=[log],
        parallelism_config={'fsdp': {}} if 'fsdp2' in mode else None,
        eval_dataloader=_to_score_on(),
        device_train_microbatch_size=1,
    )
    start = pruning.learner.start_from
    pruning.learner.start_from = lambda values: (seen.update(values), start(values))
    trainer.fit()
    trainer.close()
    losses = [float(value) for _, value in log.data['loss/train/total']]
    return {**seen, 'norm_energies': pruning.norm_energies, 'losses': torch.tensor(losses)}


def pruned_experts(source: Path, mode: str) -> dict[str, torch.Tensor]:
    """Of a run that prunes a mixture: losses by batch, scores of experts before the first one, the final masks."""
    target = {'hidden_size': 40, 'num_experts': 4, 'intermediate_size': 40}
    scores = {'expert': 'reap', 'hidden': 'activation', 'intermediate': 'activation'}
    pruning, log, seen = TargetedPruning(target, scores=scores, warmup='4ba'), InMemoryLogger(), {}
    checkpointing = {'fsdp': {'activation_checkpointing': 'checkpointing' in mode}}
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=6,
        learning_rate=1e-4,
        loggers=[log],
        parallelism_config=checkpointing if 'fsdp2' in mode else None,
        eval_dataloader=sequences_spec(16, 4, seed=5),
    )
    start = pruning.learner.start_from
    pruning.learner.start_from = lambda values: (seen.update(values), start(values))
    trainer.fit()
    trainer.close()
    losses = [float(value) for _, value in log.data['loss/train/total']]
    return {'losses': torch.tensor(losses), 'scores': seen['expert'], 'mask': pruning.final_masks()['expert']}


def main() -> None:
    source, out, modes = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    dist.initialize_dist('cpu')
    results = {(mode, learning): run(source, mode, learning, out.parent) for mode in modes for learning in RUNS}
    results |= {(mode, name): scored(source, mode, SCORES[name]) for mode in ('ddp', 'fsdp2') for name in SCORES}
    results |= {(mode, 'experts'): pruned_experts(source.with_name('mixture'), mode) for mode in EXPERT_MODES}
    if dist.get_global_rank() == 0:
        torch.save(results, out)


if __name__ == '__main__':
    main()
