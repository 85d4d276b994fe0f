"""Real training of a tiny LLaMA on the small world, in this process, over ranks, and in processes that get killed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Trainer
from composer.loggers import InMemoryLogger
from composer.metrics import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from llmfoundry.utils.builders import build_eval_loaders
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from tests.dynamic_text_world import SEQ_LEN, dynamic_loader, read_back, tiny_tokenizer

SIZES = {'a': 50, 'b': 30, 'c': 20}
REFERENCES = {'a': 4.1, 'b': 3.9, 'c': 3.0}


class WriteDown(Callback):
    """Appends every batch that was trained on to a file: its number, its samples."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def batch_start(self, state: Any, logger: Any) -> None:
        self.rows = read_back(state.batch)

    def batch_end(self, state: Any, logger: Any) -> None:
        with self.path.open('a') as file:
            file.write(json.dumps([int(state.timestamp.batch) - 1, self.rows]) + '\n')


def read_down(path: Path) -> dict[int, list[tuple[int, int]]]:
    """Batches by number. A batch that was trained on again after a resumption must be the same batch."""
    batches: dict[int, list[tuple[int, int]]] = {}
    for line in path.read_text().splitlines():
        number, rows = json.loads(line)
        rows = [tuple(row) for row in rows]
        assert batches.setdefault(number, rows) == rows, number
    return batches


def evaluators(folder: Path, batch_size: int = 4, domains: Any = SIZES, **dataset: Any) -> list[Any]:
    """Evaluators of the domains, built as llm-foundry builds them from ``eval_loader``."""
    built = []
    for name in domains:
        config = {
            'label': name,
            'name': 'text',
            'drop_last': False,
            'num_workers': 0,
            'prefetch_factor': None,
            'persistent_workers': False,
            'pin_memory': False,
            'dataset': {'local': str(folder / name), 'max_seq_len': SEQ_LEN, 'shuffle': False} | dataset,
        }
        built += build_eval_loaders([config], tiny_tokenizer(), batch_size)
        built[-1].metric_names = ['LanguageCrossEntropy']
    return built


def tiny_trainer(
    folder: Path,
    duration: str = '9ba',
    workers: int = 0,
    batch_size: int = 4,
    update: DynamicBatchLoading | None = None,
    written: Path | None = None,
    lr: float = 0.3,
    domains: Sequence[str] = tuple(SIZES),
    **settings: Any,
) -> Trainer:
    """A Trainer with rounds of three batches and everything seeded. ``settings`` go to the Trainer or the data."""
    dataset = {'round_batches': 3, 'proportions': {'a': 5, 'b': 3, 'c': 2}} | settings.pop('dataset', {})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = HuggingFaceModel(
        LlamaForCausalLM(config),
        tokenizer=tiny_tokenizer(),
        metrics=[],
        eval_metrics=[LanguageCrossEntropy()],
        use_logits=True,
    )
    callbacks = [update or DynamicBatchLoading(REFERENCES), *settings.pop('callbacks', [])]
    return Trainer(
        **{
            'model': model,
            'train_dataloader': dynamic_loader(folder, list(domains), workers, batch_size, **dataset),
            'eval_dataloader': evaluators(folder, batch_size, domains),
            'eval_interval': '3ba',
            'max_duration': duration,
            'callbacks': callbacks + ([WriteDown(written)] if written else []),
            'optimizers': torch.optim.SGD(model.parameters(), lr=lr),
            'loggers': [InMemoryLogger()],
            'progress_bar': False,
            'device': 'cpu',
            'seed': 3,
            'python_log_level': None,
        }
        | settings
    )


def metrics_of(trainer: Trainer) -> dict[str, list[float]]:
    """What was logged under ``mixture/``, by name."""
    logged = trainer.logger.destinations[0].data
    return {name: [float(value) for _, value in values] for name, values in logged.items() if 'mixture/' in name}


def weights_of(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.state.model.parameters()]
