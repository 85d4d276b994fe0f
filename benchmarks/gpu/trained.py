"""Steps of whole runs through Composer's Trainer: loader, forward, backward, optimizer, masks and logging.

Time is the host's from the end of one batch to the end of the next: Composer itself waits for the loss of every batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.optim import DecoupledAdamW
from llmfoundry.data.text_data import build_text_dataloader
from llmfoundry.models.hf import ComposerHFCausalLM
from streaming import MDSWriter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks.gpu import timing
from benchmarks.gpu.cases import Row
from benchmarks.gpu.group import use_group
from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.data.dynamic_text import build_dynamic_text_dataloader
from llmshearing.models.sheared_causal_lm import ShearedCausalLM

__all__ = ['RUNS', 'Run', 'measure_run']

STEPS, WARM = 24, 8  # of which so many are not counted
WAITS_IN, TRACED_IN = 4, 6  # batches that are watched instead of timed
DOMAINS = ('a', 'b')


@dataclasses.dataclass(frozen=True)
class Run:
    """One kind of run.

    Attributes:
        of_target (bool): Trains the target's shape; the source's otherwise.
        loader (str): ``'dynamic_text'``, or llm-foundry's ``'text'``.
        pruning (dict | None): Options of ``targeted_pruning``; None without it.
    """

    of_target: bool
    loader: str
    pruning: dict[str, Any] | None = None


AT_TARGET = {'warmup': '1ba'}
RUNS = {
    'training the target, plain llm-foundry': Run(True, 'text'),
    'continued pre-training': Run(True, 'dynamic_text'),
    'training the source, plain llm-foundry': Run(False, 'text'),
    'pruning run, progressive, at target': Run(False, 'dynamic_text', {'mask_learning': 'progressive', **AT_TARGET}),
    'pruning run, lagrangian, all kept': Run(
        False, 'dynamic_text', {'mask_learning': 'lagrangian', 'warmup': '1dur', 'learning_rate': 0.0}
    ),
}


class StepMeter(Callback):
    """Times batches from end to end, and looks into one for waits and into another for its kernels."""

    def __init__(self, device: str):
        self.device, self.taken, self.found = device, [], {}
        self._last: float | None = None
        self._watching = contextlib.ExitStack()

    def batch_end(self, state: State, logger: Logger) -> None:
        now, batch = time.perf_counter(), state.timestamp.batch.value
        self._watching.close()
        if batch > WARM and self._last is not None:
            self.taken.append(now - self._last)
        if self.device == 'cuda' and batch == WAITS_IN:
            self.found['where it waits'] = self._watching.enter_context(timing.waits())
        elif self.device == 'cuda' and batch == TRACED_IN:
            self.found['trace'] = self._watching.enter_context(timing.tracing())
        self._last = time.perf_counter()


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = WordLevel({f't{number}': number for number in range(vocabulary)}, unk_token='t0')
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token='t0', eos_token='t1', bos_token='t1', unk_token='t0'
    )


def _data(folder: Path, samples: int, length: int, vocabulary: int) -> Path:
    """Random tokens as MDS, one folder per domain."""
    shutil.rmtree(folder, ignore_errors=True)
    generator = np.random.default_rng(0)
    for name in DOMAINS:
        with MDSWriter(out=str(folder / name), columns={'tokens': 'ndarray:uint32'}) as writer:
            for _ in range(samples):
                writer.write({'tokens': generator.integers(3, vocabulary, length, dtype=np.uint32)})
    return folder


def _loader(run: Run, data: Path, tokenizer: Any, batch: int, length: int) -> Any:
    if run.loader == 'dynamic_text':
        dataset = {'local': str(data), 'domains': list(DOMAINS), 'round_batches': 1000, 'shuffle_seed': 17}
        return build_dynamic_text_dataloader(tokenizer, batch, {**dataset, 'max_seq_len': length})
    dataset = {'local': str(data / DOMAINS[0]), 'max_seq_len': length, 'shuffle': True}
    return build_text_dataloader(
        tokenizer, batch, dataset, drop_last=True, num_workers=0, prefetch_factor=None, persistent_workers=False
    )


def measure_run(
    run: Run, config: LlamaConfig, target: dict[str, int], tokens: int, length: int, device: str, work: Path
) -> Row:
    """Median time of a batch, and what was seen of one.

    Args:
        config (LlamaConfig): Of the shape that is trained.
        target (dict): Shape that pruning ends at.
        tokens (int): Per batch, in one micro-batch.
        length (int): Tokens per sequence.
        work (Path): Folder for the config and random tokens.
    """
    use_group(device)
    steps, folder, batch = STEPS if device == 'cuda' else WARM + 2, work / 'trained', tokens // length
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = _tokenizer(config.vocab_size)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = _data(work / 'trained-data', steps * batch + 2 * batch, length, config.vocab_size)
    kind = ComposerHFCausalLM if run.pruning is None else ShearedCausalLM
    model = kind(
        tokenizer,
        pretrained_model_name_or_path=str(folder),
        pretrained=False,
        use_train_metrics=False,
        trust_remote_code=False,
        attn_implementation='sdpa',
        config_overrides={'use_cache': False},
    )
    meter = StepMeter(device)
    trainer = Trainer(
        model=model,
        train_dataloader=_loader(run, data, tokenizer, batch, length),
        max_duration=f'{steps}ba',
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0),
        algorithms=[] if run.pruning is None else [TargetedPruning(target, tolerance=1.0, **run.pruning)],
        callbacks=[meter],
        device='gpu' if device == 'cuda' else 'cpu',
        precision='amp_bf16' if device == 'cuda' else 'fp32',
        progress_bar=False,
        auto_log_hparams=False,
        seed=17,
    )
    trainer.fit()
    trainer.close()
    seconds = statistics.median(meter.taken)
    row: Row = {
        'ms': 1000 * seconds,
        'from': 1000 * min(meter.taken),
        'to': 1000 * max(meter.taken),
        'tokens/s': round(batch * length / seconds),
    }
    if device == 'cuda':
        waits = meter.found['where it waits']
        row |= {'waits': sum(waits.values()), 'where it waits': waits, **meter.found['trace']}
        row['allocated GiB'] = torch.cuda.max_memory_allocated() / 2**30
    return row
