"""Prunes a tiny model over FSDP2 with sharded checkpoints: ``export_worker.py WORK PRECISION``.

With bfloat16, FSDP2 computes as under ``amp_bf16``, which Composer itself allows on GPUs only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault('FSDP_VERSION', '2')

import composer.distributed.fsdp2
import torch
from composer.utils import dist
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoTokenizer

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.tiny_run import tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


def main() -> None:
    work, precision = Path(sys.argv[1]), getattr(torch, sys.argv[2])
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    composer.distributed.fsdp2.create_mixed_precision_policy = lambda *_: policy
    dist.initialize_dist('cpu')
    source = work / 'source'
    trainer = tiny_trainer(
        source,
        [TargetedPruning(TARGET, warmup='0.5dur', mask_learning='lagrangian')],
        batches=4,
        model=ShearedCausalLM(AutoTokenizer.from_pretrained(source), str(source)),
        callbacks=[ExportPruned(str(work / 'pruned'), allow_unconverged=True)],
        parallelism_config={'fsdp': {'activation_checkpointing': True, 'state_dict_type': 'sharded'}},
        save_folder=str(work / 'checkpoints'),
        save_filename='ba{batch}/{rank}.pt',
        save_interval='4ba',
    )
    trainer.fit()
    trainer.close()


if __name__ == '__main__':
    main()
