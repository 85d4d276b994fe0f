"""A pruning run small enough for tests: a tiny source folder, text with structure, a Composer Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import DataSpec
from composer.loggers import InMemoryLogger
from composer.optim import CosineAnnealingWithWarmupScheduler
from composer.utils import dist
from llmfoundry.models.hf import ComposerHFCausalLM
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.models.tiny import tiny_model

LENGTH = 16


def tiny_tokenizer(vocab_size: int = 97) -> PreTrainedTokenizerFast:
    """One token per word w0, w1, ...; ids 0 to 2 are padding, beginning and end."""
    words = ['<pad>', '<s>', '</s>'] + [f'w{i}' for i in range(vocab_size - 3)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='<pad>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', bos_token='<s>', eos_token='</s>')


def tiny_source(folder: Path, variant: str = 'llama', **overrides) -> Path:
    """Saves a tiny random source model with its tokenizer."""
    tiny_model(variant, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def stock(folder: Path) -> ComposerHFCausalLM:
    """llm-foundry's own model of a folder, which knows no masks."""
    return ComposerHFCausalLM(
        tokenizer=tiny_tokenizer(),
        pretrained_model_name_or_path=str(folder),
        pretrained=True,
        use_train_metrics=False,
        trust_remote_code=False,
        attn_implementation='sdpa',
    )


class Sequences(Dataset):
    """Arithmetic sequences modulo the vocabulary: something that can be learned."""

    def __init__(self, samples: int, vocab_size: int = 97, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(3, vocab_size, (samples, 1), generator=generator)
        step = torch.randint(1, 4, (samples, 1), generator=generator)
        self.ids = 3 + (start + step * torch.arange(LENGTH)) % (vocab_size - 3)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            'input_ids': self.ids[index],
            'labels': self.ids[index],
            'attention_mask': torch.ones(LENGTH, dtype=torch.long),
        }


def sequences_spec(samples: int, batch_size: int, seed: int = 0) -> DataSpec:
    """A loader of global batches of ``batch_size``, of which each rank gets its share."""
    data = Sequences(samples, seed=seed)
    loader = DataLoader(data, batch_size // dist.get_world_size(), sampler=dist.get_sampler(data, shuffle=False))
    return DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch['input_ids'].numel())


def tiny_trainer(
    source: Path,
    algorithms: Any,
    batches: int = 10,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    model: ShearedCausalLM | None = None,
    **trainer_settings,
) -> Trainer:
    """A Trainer over :class:`Sequences` on CPU."""
    model = model or ShearedCausalLM(tiny_tokenizer(), str(source))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    settings = dict(
        model=model,
        train_dataloader=sequences_spec(batch_size * batches, batch_size),
        max_duration=f'{batches}ba',
        optimizers=optimizer,
        schedulers=CosineAnnealingWithWarmupScheduler(t_warmup='0.1dur', alpha_f=0.1),
        algorithms=algorithms,
        progress_bar=False,
        auto_log_hparams=False,
        device='cpu',
    )
    return Trainer(**{**settings, **trainer_settings})


def losses_by_name(log: InMemoryLogger) -> dict[str, list[float]]:
    """Every part of the training loss that was logged, batch by batch."""
    names = [name.rpartition('/')[2] for name in log.data if name.startswith('loss/train/')]
    return {name: [float(value) for _, value in log.data[f'loss/train/{name}']] for name in names}
