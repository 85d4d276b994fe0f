"""Whole runs of both stages, tiny, each in processes of its own, so that they can be killed and spread over ranks.

A run is a real Trainer over prepared data of four domains, with rounds, evaluations and updates of the mixture.
Everything that a resumed run must repeat is written to one metrics file: losses, counts, weights, and digests of
batches, masks and multipliers.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Callback
from composer.optim import CosineAnnealingWithWarmupScheduler
from composer.utils import dist
from llmfoundry.models.hf import ComposerHFCausalLM
from llmfoundry.utils.builders import build_eval_loaders
from streaming.base.shared import SharedMemory
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from llmshearing.algorithms.targeted_pruning import TargetedPruning, find_pruning
from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.data.dynamic_text import build_dynamic_text_dataloader
from llmshearing.metrics.logger import MetricsFile
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests import dynamic_text_world
from tests.dynamic_text_world import FORK
from tests.models.tiny import tiny_model
from tests.tiny_data import DOMAINS, tiny_data
from tests.tiny_run import LENGTH, tiny_source, tiny_tokenizer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
ROUND, BATCHES, BATCH_SIZE = 3, 10, 4
REFERENCES = dict(zip(DOMAINS, (4.4, 4.3, 4.5, 4.2)))
UNREPEATABLE = ('mixture/eval_share', 'time/')  # metrics of the clock


def make_world(work: Path) -> Path:
    """Writes what both stages need: a source, the model that stage 2 starts from, and prepared data."""
    tiny_source(work / 'source')
    small = tiny_model(seed=1, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40)
    small.save_pretrained(work / 'small')
    tiny_tokenizer().save_pretrained(work / 'small')
    tiny_data(work, LENGTH)
    return work


class Digests(Callback):
    """Logs sums over checksums of what a batch was computed from, equal for any number of ranks that share a batch."""

    def batch_start(self, state: Any, logger: Any) -> None:
        checksums = [zlib.crc32(row.numpy().tobytes()) for row in state.batch['input_ids']]
        rows = torch.tensor([sum(checksums)], dtype=torch.float64)
        dist.all_reduce(rows)
        self.rows = rows.item()

    def after_train_batch(self, state: Any, logger: Any) -> None:
        digests = {'digest/batch': self.rows}
        pruning = find_pruning(state)
        if pruning is not None:
            model = getattr(state.model, 'module', state.model)
            for axis, mask in model.cutter.masks.items():
                digests[f'digest/mask/{axis}'] = float(zlib.crc32(mask.numpy().tobytes()))
                digests[f'mask/{axis}'] = mask.double().sum().item()
            for name, value in pruning.learner.multipliers.items():
                lam, phi = value.detach().double().tolist()
                digests |= {f'multipliers/{name}/lambda': lam, f'multipliers/{name}/phi': phi}
        logger.log_metrics(digests)


def _evaluators(work: Path, tokenizer: Any, batch_size: int) -> list[Any]:
    built = []
    for name in DOMAINS:
        config = {
            'label': name,
            'name': 'text',
            'drop_last': False,
            'num_workers': 0,
            'prefetch_factor': None,
            'persistent_workers': False,
            'pin_memory': False,
            'dataset': {'local': str(work / 'data' / 'eval' / name), 'max_seq_len': LENGTH, 'shuffle': False},
        }
        built += build_eval_loaders([config], tokenizer, batch_size)
        built[-1].metric_names = ['LanguageCrossEntropy']
        built[-1].subset_num_batches = 2 // dist.get_world_size()
    return built


def build(
    stage: str,
    work: Path,
    place: Path,
    batches: int = BATCHES,
    workers: int = 0,
    fsdp: dict[str, Any] | None = None,
    pruning: dict[str, Any] | None = None,
    init_device: str = 'cpu',
    learning_rate: float = 1e-3,
    callbacks: Any = (),
    **settings: Any,
) -> Trainer:
    """A run of ``'prune'`` or ``'continue'`` on this process's share of each global batch, in two micro-batches."""
    folder = work / ('source' if stage == 'prune' else 'small')
    tokenizer = read_tokenizer(folder)
    device_batch = BATCH_SIZE // dist.get_world_size()
    algorithms, own = [], [DynamicBatchLoading(REFERENCES), *callbacks, Digests()]
    if stage == 'prune':
        model = ShearedCausalLM(tokenizer, str(folder), init_device=init_device)
        times = {'warmup': '5ba', 'freeze_masks_after': '8ba'}
        options = {'target': TARGET, 'mask_learning': 'lagrangian', **times, **(pruning or {})}
        algorithms.append(TargetedPruning(**options))
        own.append(ExportPruned(str(place / 'exported'), allow_unconverged=True, overwrite=True))
    else:
        model = ComposerHFCausalLM(
            tokenizer, str(folder), trust_remote_code=False, use_train_metrics=False, init_device=init_device
        )
    split = 'prune' if stage == 'prune' else 'continue'
    loader = build_dynamic_text_dataloader(
        tokenizer,
        device_batch,
        {'local': str(work / 'data' / split), 'domains': list(DOMAINS), 'round_batches': ROUND, 'max_seq_len': LENGTH},
        num_workers=workers,
        pin_memory=False,
    )
    trainer = Trainer(
        **{
            'model': model,
            'train_dataloader': loader,
            'eval_dataloader': _evaluators(work, tokenizer, 4),
            'eval_interval': f'{ROUND}ba',
            'max_duration': f'{batches}ba',
            'optimizers': torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0),
            'schedulers': CosineAnnealingWithWarmupScheduler(t_warmup='0.1dur', alpha_f=0.1),
            'algorithms': algorithms,
            'callbacks': own,
            'loggers': [MetricsFile(str(place / 'metrics.jsonl'))],
            'device_train_microbatch_size': max(1, device_batch // 2),
            'parallelism_config': None if fsdp is None else {'fsdp': fsdp},
            'save_folder': str(place / 'save'),
            'save_filename': 'ba{batch}.pt',
            'save_interval': '1ba',
            'save_overwrite': True,
            'run_name': 'run',
            'progress_bar': False,
            'auto_log_hparams': False,
            'python_log_level': None,
            'device': 'cpu',
            'seed': 3,
            'dist_timeout': 60,
        }
        | settings
    )
    average_on_gloo(trainer.state.model)
    return trainer


def average_on_gloo(model: torch.nn.Module) -> None:
    """Makes FSDP2 average gradients on CPU where gloo takes the average it is asked for as a sum, as in torch 2.7."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not sharded:
        return
    got = torch.empty(1)
    ones = torch.ones(dist.get_world_size())
    torch.distributed.reduce_scatter_tensor(got, ones, op=torch.distributed.ReduceOp.AVG)
    if got.item() == 1:
        return
    for module in sharded:
        module.set_all_reduce_hook(lambda gradient: gradient.div_(dist.get_world_size()))


def train(stage: str, work: Path, place: Path, **settings: Any) -> None:
    """One run to its end; then rank 0 writes the weights, and the masks of stage 1, to ``place/result``."""
    os.environ.setdefault('FSDP_VERSION', '2')
    torch.set_num_threads(1)
    dist.initialize_dist('cpu', timeout=60)
    trainer = build(stage, work, place, **settings)
    trainer.fit()
    weights = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in trainer.state.model.state_dict().items()
    }
    masks = {} if stage == 'continue' else find_pruning(trainer.state).final_masks()
    if dist.get_global_rank() == 0:
        weights = {name.removeprefix('module.'): value.detach().clone() for name, value in weights.items()}
        torch.save({'weights': weights, 'masks': masks}, place / 'result')
    trainer.close()


def start(stage: str, work: Path, place: Path, **settings: Any) -> Any:
    """Starts a run on one rank in a process group of its own, which can be killed."""
    place.mkdir(parents=True, exist_ok=True)
    process = FORK.Process(target=_own_group, args=(stage, work, place), kwargs=settings)
    process.start()
    return process


def finish(stage: str, work: Path, place: Path, **settings: Any) -> tuple[dict[int, dict[str, float]], dict[str, Any]]:
    """A whole run on one rank. Returns its metrics by batch and its result."""
    process = start(stage, work, place, **settings)
    process.join(120)
    assert process.exitcode == 0
    return outcome(place)


def train_rank(rank: int, stage: str, work: Path, place: Path, settings: dict[str, Any]) -> None:
    """For :func:`tests.dynamic_text_world.on_ranks`."""
    train(stage, work, place, **settings)


def outcome(place: Path) -> tuple[dict[int, dict[str, float]], dict[str, Any]]:
    """What a run, or the runs that took turns at it, wrote: metrics by batch and the result."""
    return read_metrics(place / 'metrics.jsonl'), torch.load(place / 'result', weights_only=True)


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by batch. What was logged twice, because it was computed again after a resumption, must be the same."""
    metrics: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        batch = metrics.setdefault(entry.pop('batch'), {})
        for name, value in entry.items():
            if not name.startswith(UNREPEATABLE):
                assert batch.setdefault(name, value) == value, (name, value, batch[name])
    return metrics


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _own_group(stage: str, work: Path, place: Path, **settings: Any) -> None:
    os.setsid()
    SharedMemory.__init__ = dynamic_text_world._make_memory  # here nothing is to be kept for the test's end
    train(stage, work, place, **settings)
