"""A few steps of training for a candidate: the loss after training is what counts, and cuts alone may order otherwise.

Every candidate starts from its own cut, sees the same sequences in the same order, and has the same steps; none of the
sequences is a held-out one. The learning rate stays constant after its warm-up, because a curve that is to be continued
must not end in a decay.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from composer import Trainer
from composer.core import Callback, DataSpec, State
from composer.devices import DeviceGPU
from composer.loggers import Logger
from composer.optim import ConstantWithWarmupScheduler, DecoupledAdamW
from llmfoundry.models.hf import ComposerHFCausalLM
from transformers import PreTrainedModel

from llmshearing.compat import composer, llmfoundry
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.cut.source import losses_of
from llmshearing.cut.text import Text, token_batches
from llmshearing.search.settings import SearchSettings

__all__ = ['train_candidate']

POINTS = 6  # of a curve


class _HeldOutLosses(Callback):
    """Losses on held-out text after some steps."""

    def __init__(self, texts: Sequence[Text], steps: Sequence[int], batch_size: int):
        self.texts, self.steps, self.batch_size = texts, set(steps), batch_size
        self.curve: list[dict] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        if step not in self.steps:
            return
        model = cast(PreTrainedModel, state.model.model).eval()
        losses = losses_of(model, self.texts, self.batch_size)
        model.train()
        self.curve.append({'step': step, 'tokens': step * state.batch['input_ids'].numel(), 'losses': losses})


def _measured_steps(steps: int) -> list[int]:
    """Steps after which losses are measured: up to :data:`POINTS` with even ratios, the last step among them."""
    return sorted({round(step) for step in np.geomspace(max(1, steps / 16), steps, POINTS).tolist()})


def train_candidate(folder: str | Path, texts: Sequence[Text], settings: SearchSettings, device: str) -> list[dict]:
    """Trains a cut model by the ordinary Trainer; nothing is written.

    Args:
        folder (str | Path): The cut model.
        texts (Sequence[Text]): With ``steps`` x ``batch_size`` sequences to see, in all, or more.
        settings (SearchSettings): Steps, batch size and learning rate.
        device (str): Where to compute; on GPUs in bfloat16.

    Returns:
        list[dict]: ``step``, ``tokens`` seen and ``losses`` by text on held-out text, in nats per token, at
        :func:`_measured_steps`.
    """
    composer.install()
    llmfoundry.install()
    logging.getLogger('composer').setLevel(logging.WARNING)
    tokenizer = read_tokenizer(folder)
    model = ComposerHFCausalLM(
        tokenizer=tokenizer, pretrained_model_name_or_path=str(folder), use_train_metrics=False, init_device='cpu'
    )
    batches = token_batches(texts, settings.batch_size)[: settings.steps]
    measuring = _HeldOutLosses(texts, _measured_steps(settings.steps), settings.batch_size)
    gpu = device.startswith('cuda')
    index = torch.device(device).index
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(batches, get_num_tokens_in_batch=lambda batch: batch['input_ids'].numel()),
        max_duration=f'{settings.steps}ba',
        device_train_microbatch_size=settings.batch_size,
        optimizers=DecoupledAdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
        ),
        schedulers=ConstantWithWarmupScheduler(t_warmup=f'{max(1, settings.steps // 10)}ba'),
        algorithms=[],
        callbacks=[measuring],
        # Not by its name: that takes the first GPU, and leaves TF32 on for all that is computed afterwards.
        device=DeviceGPU(torch.cuda.current_device() if index is None else index, allow_tf32=False) if gpu else 'cpu',
        precision='amp_bf16' if gpu else 'fp32',
        seed=settings.cut.seed,
        progress_bar=False,
        log_to_console=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    composer.close_trainer(trainer)
    return measuring.curve
