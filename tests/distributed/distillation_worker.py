"""Distils on this process's share of each global batch; rank 0 saves what the test compares.

usage: distillation_worker.py FOLDER OUT MODE [MODE ...] with modes ``ddp`` and ``fsdp2``, each also with ``+pruning``
and ``+pruning+hidden``; FOLDER holds teacher and student, which in the last is its own teacher.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault('FSDP_VERSION', '2')

import torch
from composer.loggers import InMemoryLogger
from composer.utils import dist
from llmfoundry.models.hf import ComposerHFCausalLM
from torch.distributed.tensor import DTensor

from llmshearing.algorithms.distillation import Distillation
from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.tiny_run import tiny_tokenizer, tiny_trainer

TARGET = {'num_hidden_layers': 2, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


def run(folder: Path, mode: str) -> dict:
    """One run; returns its losses per batch and the share of the teacher's numbers that this rank holds."""
    sharded, pruning, hidden = ('fsdp2' in mode), ('pruning' in mode), ('hidden' in mode)
    teacher = str(folder / ('student' if hidden else 'teacher'))
    distillation = Distillation(teacher, weight=2.0, temperature=2.0, top_k=20, hidden_weight=float(hidden))
    log = InMemoryLogger()
    settings = dict(
        pretrained_model_name_or_path=str(folder / 'student'),
        attn_implementation='sdpa',
        init_device='mixed' if sharded else 'cpu',
    )
    if pruning:
        model = ShearedCausalLM(tiny_tokenizer(), **settings)
    else:
        model = ComposerHFCausalLM(
            tiny_tokenizer(), pretrained=True, use_train_metrics=False, trust_remote_code=False, **settings
        )
    trainer = tiny_trainer(
        folder / 'student',
        [distillation, TargetedPruning(TARGET, mask_learning='progressive', warmup='2ba')]
        if pruning
        else [distillation],
        model=model,
        batches=2,
        learning_rate=1e-4,
        loggers=[log],
        parallelism_config={'fsdp': {'state_dict_type': 'full'}} if sharded else None,
        device_train_microbatch_size=1,
    )
    trainer.fit()
    trainer.close()
    frozen = list(distillation.teacher.parameters())
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen) / sum(p.numel() for p in frozen)
    names = ('total', 'distillation', *(['hidden_states'] if hidden else []))
    losses = {name: [float(value) for _, value in log.data[f'loss/train/{name}']] for name in names}
    return {'losses': losses, 'held': held}


def main() -> None:
    folder, out, modes = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    dist.initialize_dist('cpu')
    results = {mode: run(folder, mode) for mode in modes}
    if dist.get_global_rank() == 0:
        torch.save(results, out)


if __name__ == '__main__':
    main()
