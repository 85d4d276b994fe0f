"""The source models of ``quality.py``: tokens of five domains, and a LLaMA or a mixture trained on them, or SmolLM2.

Text is what every installation carries (as in the demo). The small source's tokenizer is a byte-level BPE trained on
it, so that the embedding does not outweigh the layers. A source can be given fewer tokens first: then its target is
widened to as many parameters as without. Everything is made once per work folder.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from collections.abc import Iterator

import torch
from composer import Evaluator, Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW
from llmfoundry.data.text_data import build_text_dataloader
from llmfoundry.models.hf import ComposerHFCausalLM
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llmshearing.algorithms.distillation import Distillation
from llmshearing.compat import composer, llmfoundry
from llmshearing.data.mds import read_tokens
from llmshearing.data.dynamic_text import build_dynamic_text_dataloader
from llmshearing.prepare.pipeline import prepare
from llmshearing.demo.run import DOMAINS as DEMO_DOMAINS
from llmshearing.demo.source_model import build_source_model
from llmshearing.demo.text import harvest_text
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import flatten_masks
from llmshearing.models.roles import Linear
from llmshearing.scaling.measure import find_domains
from llmshearing.vocabulary.settings import TrimSettings
from llmshearing.vocabulary.trim_source import trim_source

__all__ = [
    'DOMAINS',
    'FULL',
    'MIXTURE',
    'QUICK',
    'QUICK_MIXTURE',
    'SMOLLM',
    'ComputeMeter',
    'Sizes',
    'held_out_text',
    'make_demo_inputs',
    'make_source',
    'make_trainer',
    'make_trimmed',
]

composer.install()
llmfoundry.install()  # the source is trained as llm-foundry's own model

DOMAINS = ('python', 'api_docs', 'descriptions', 'licences', 'cpp')
SOURCE_LEARNING_RATE = 2e-3
EVAL_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One source and the budget of its arms.

    Attributes:
        source (dict | None): Settings of the source's config; None for SmolLM2-135M-Instruct as it comes.
        target (dict): Shape that all arms prune to.
        between (tuple): Shapes on the way there, for arms in stages.
        max_seq_len (int): Tokens per sequence.
        batch_size (int): Sequences per step of the arms; the source's steps have twice as many.
        source_steps (int): Steps that the source is trained.
        steps (int): Steps of every arm, pruning and continued training together.
        max_chars (int): Characters of text per domain.
        eval_tokens (int): Tokens of held-out text per domain.
        on_the_way (int): Sequences per domain for losses before the end.
        learning_rate (float): Peak learning rate of the arms.
        proportions (dict | None): Mixture of the domains where an arm sets none; equal by default.
        rotation (dict): Settings of the rotation of a source.
        family (str): The source's ``model_type``.
        device (str): ``'cpu'``, or ``'gpu'``, where steps are computed in bfloat16.
        bfloat16 (bool): Whether they are on a CPU, too.
    """

    source: dict | None
    target: dict
    between: tuple[dict, ...] = ()
    max_seq_len: int = 128
    batch_size: int = 4
    source_steps: int = 3000
    steps: int = 600
    max_chars: int = 4_000_000
    eval_tokens: int = 8_000
    on_the_way: int = 32
    learning_rate: float = 2e-3
    proportions: dict[str, float] | None = None
    rotation: dict[str, int] = dataclasses.field(default_factory=dict)
    family: str = 'llama'
    device: str = 'cpu'
    bfloat16: bool = False

    @property
    def torch_device(self) -> str:
        """PyTorch's word for ``device``."""
        return 'cuda' if self.device == 'gpu' else 'cpu'

    @property
    def sequences_evaluated(self) -> int:
        """Sequences per domain in the evaluations of a run."""
        return EVAL_BATCHES * 2 * self.batch_size


FULL = Sizes(
    source=dict(hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=512, vocab_size=4096),
    target=dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=344),
    between=(
        dict(hidden_size=168, num_hidden_layers=6, num_attention_heads=6, intermediate_size=456),
        dict(hidden_size=150, num_hidden_layers=5, num_attention_heads=5, intermediate_size=400),
    ),
)
SMOLLM = Sizes(
    source=None,
    target=dict(hidden_size=384, num_hidden_layers=22, num_key_value_heads=2, intermediate_size=1024),
    between=(
        dict(hidden_size=504, num_hidden_layers=28, num_key_value_heads=3, intermediate_size=1368),
        dict(hidden_size=432, num_hidden_layers=25, num_key_value_heads=2, intermediate_size=1192),
    ),
    max_seq_len=256,
    steps=100,
    max_chars=2_000_000,
    on_the_way=8,
    learning_rate=1e-3,
    rotation=dict(fixed_axes=128),
)
QUICK = Sizes(
    source=dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, vocab_size=512),
    target=dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32),
    between=(dict(hidden_size=28, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40),),
    max_seq_len=32,
    batch_size=2,
    source_steps=4,
    steps=8,
    max_chars=400_000,
    eval_tokens=500,
    rotation=dict(tokens=2048, held_out=256),
)

# Sixteen experts to a layer, two to a token. The target leaves half of them; a token's way through it costs the same.
MIXTURE = dataclasses.replace(
    FULL,
    family='qwen3_moe',
    source=dict(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        moe_intermediate_size=128,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        output_router_logits=True,
        vocab_size=4096,
    ),
    target=dict(num_experts=8),
)
QUICK_MIXTURE = dataclasses.replace(
    QUICK,
    family='qwen3_moe',
    source={**MIXTURE.source, **QUICK.source, 'head_dim': 8, 'moe_intermediate_size': 16, 'num_experts': 4},
    target=dict(num_experts=2),
)


def make_source(work: Path, sizes: Sizes, name: str = 'source') -> Path:
    """Makes text, tokenizer, tokens and source ``name`` below ``work`` where missing; returns the source's folder."""
    if not (work / 'text').exists():
        harvest_text(work / 'text', max_chars=sizes.max_chars, domains=DOMAINS)
    if sizes.source is None:
        build_source_model(work / name, work / 'downloads')
    if not (work / 'tokenizer').exists():
        _make_tokenizer(work, sizes)
    _prepare(work, work / 'text', sizes)
    if not (work / name).exists():
        special = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
        settings = {**sizes.source, **special, 'max_position_embeddings': sizes.max_seq_len}
        config = AutoConfig.for_model(sizes.family, **settings)
        tokenizer = AutoTokenizer.from_pretrained(work / 'tokenizer')
        AutoModelForCausalLM.from_config(config).save_pretrained(work / f'{name}-untrained')
        tokenizer.save_pretrained(work / f'{name}-untrained')
        model = ComposerHFCausalLM(
            tokenizer=tokenizer, pretrained_model_name_or_path=str(work / f'{name}-untrained'), use_train_metrics=False
        )
        larger = dataclasses.replace(sizes, batch_size=2 * sizes.batch_size)
        make_trainer(work, model, larger, sizes.source_steps, SOURCE_LEARNING_RATE, seed=1).fit()
        tokenizer.save_pretrained(work / f'{name}.part')
        model.model.save_pretrained(work / f'{name}.part')
        (work / f'{name}.part').replace(work / name)  # whoever is killed before leaves none
    return work / name


def make_demo_inputs(work: Path) -> Path:
    """Makes SmolLM2-135M and the demo's texts below its ``work`` folder where missing; returns the source's folder."""
    if not (work / 'text').exists():
        harvest_text(work / 'text', domains=DEMO_DOMAINS)
    return build_source_model(work / 'source', work / 'downloads')


def make_trimmed(work: Path, sizes: Sizes, tokens: int) -> tuple[Path, Sizes]:
    """The source with so many of its tokens, those that its training text needs, in a work folder of its own.

    The embedding's parameters that go are given back to the target: to its MLPs, in multiples of 64.
    """
    below = work / f'{tokens}-tokens'
    if not (below / 'source').exists():
        trim_source(work / 'source', below / 'source', TrimSettings(tokens), [work / 'data' / 'train'])
    if not (below / 'tokenizer').exists():
        AutoTokenizer.from_pretrained(below / 'source').save_pretrained(below / 'tokenizer')
    _prepare(below, work / 'text', sizes)
    config = AutoConfig.from_pretrained(work / 'source')
    tables = 1 if config.tie_word_embeddings else 2
    more = tables * (config.vocab_size - tokens) / (3 * sizes.target['num_hidden_layers'])
    width = min(sizes.target['intermediate_size'] + 64 * round(more / 64), config.intermediate_size)
    return below, dataclasses.replace(sizes, target={**sizes.target, 'intermediate_size': width})


def held_out_text(work: Path) -> dict[str, list[str]]:
    """The sequences of ``work`` that are evaluated, as text, by domain: what vocabularies can be compared on."""
    kept = work / 'held_out.json'
    if not kept.exists():
        tokenizer = AutoTokenizer.from_pretrained(work / 'tokenizer')
        domains = find_domains(work / 'data')
        texts = {name: [tokenizer.decode(row) for row in read_tokens(folder)] for name, folder in domains.items()}
        kept.write_text(json.dumps(texts), encoding='utf-8')
    return json.loads(kept.read_text(encoding='utf-8'))


def _prepare(work: Path, text: Path, sizes: Sizes) -> None:
    if (work / 'data' / 'manifest.json').exists():
        return
    prepare(
        {
            'tokenizer': str(work / 'tokenizer'),
            'max_seq_len': sizes.max_seq_len,
            'out': str(work / 'data'),
            'seed': 17,
            'domains': {name: {'path': str(text / f'{name}.jsonl')} for name in DOMAINS},
            'splits': {'eval': {'fraction': 0.1, 'tokens': sizes.eval_tokens}, 'train': {}},
        }
    )


def _make_tokenizer(work: Path, sizes: Sizes) -> None:
    if sizes.source is None:
        AutoTokenizer.from_pretrained(work / 'source').save_pretrained(work / 'tokenizer')
        return
    tokenizer = ByteLevelBPETokenizer()
    files = [str(work / 'text' / f'{name}.jsonl') for name in DOMAINS]
    tokenizer.train(files, vocab_size=sizes.source['vocab_size'], special_tokens=['</s>'], show_progress=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token='</s>', bos_token='</s>', pad_token='</s>'
    ).save_pretrained(work / 'tokenizer')


def make_trainer(
    work: Path,
    model: ComposerHFCausalLM,
    sizes: Sizes,
    steps: int,
    learning_rate: float,
    seed: int,
    round_batches: int = 10,
    eval_interval: str | int = 0,
    algorithms: tuple = (),
    callbacks: tuple[Callback, ...] = (),
    alpha_f: float = 0.1,
    proportions: dict[str, float] | None = None,
    microbatch: int | None = None,
) -> Trainer:
    """A Trainer over a mixture of the domains, equal by default; its loader serves other samples for every seed."""
    tokenizer = AutoTokenizer.from_pretrained(work / 'tokenizer')
    stored = any(isinstance(algorithm, Distillation) and algorithm.stored for algorithm in algorithms)
    train = build_dynamic_text_dataloader(
        tokenizer=tokenizer,
        device_batch_size=sizes.batch_size,
        dataset={
            'local': str(work / ('taught' if stored else 'data') / 'train'),
            'teacher': stored,
            'domains': list(DOMAINS),
            'proportions': proportions or sizes.proportions or dict.fromkeys(DOMAINS, 1),
            'round_batches': round_batches,
            'max_seq_len': sizes.max_seq_len,
            'shuffle_seed': seed,
        },
        pin_memory=False,
    )
    if sizes.bfloat16:  # Composer's amp_bf16 is for GPUs alone
        model.forward = torch.autocast('cpu', torch.bfloat16)(model.forward)
    optimizer = DecoupledAdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    return Trainer(
        model=model,
        train_dataloader=train,
        eval_dataloader=list(_evaluators(work, tokenizer, sizes)),
        eval_interval=eval_interval,
        eval_subset_num_batches=EVAL_BATCHES,
        max_duration=f'{steps}ba',
        device_train_microbatch_size=microbatch,
        optimizers=optimizer,
        schedulers=CosineAnnealingWithWarmupScheduler(t_warmup='0.05dur', alpha_f=alpha_f),
        algorithms=list(algorithms),
        callbacks=list(callbacks),
        seed=seed,
        device=sizes.device,
        precision='amp_bf16' if sizes.device == 'gpu' else 'fp32',
        progress_bar=False,
        auto_log_hparams=False,
    )


def _evaluators(work: Path, tokenizer: PreTrainedTokenizerBase, sizes: Sizes) -> Iterator[Evaluator]:
    for name in DOMAINS:
        folder = work / 'data' / 'eval' / name
        loader = build_text_dataloader(
            tokenizer=tokenizer,
            device_batch_size=sizes.sequences_evaluated // EVAL_BATCHES,
            dataset={'local': str(folder), 'max_seq_len': sizes.max_seq_len, 'shuffle': False},
            drop_last=False,
            num_workers=0,
            prefetch_factor=None,
            persistent_workers=False,
            pin_memory=False,
        )
        yield Evaluator(label=name, dataloader=loader, metric_names=['LanguageCrossEntropy'])


class ComputeMeter(Callback):
    """Adds up what the steps of a run cost in matrix products.

    6 FLOPs per token and weight in use, forward and backward, and 2 per token and weight of a teacher. Routed experts
    count as many as a token is routed to.
    """

    def __init__(self) -> None:
        self.flops = 0.0

    def after_train_batch(self, state: State, logger: Logger) -> None:
        model = state.model
        cutter = getattr(model, 'cutter', None)
        is_cut = cutter is not None and cutter.plan is not None
        weights = _weights_in_use(model.model, cutter) if is_cut else _matrices(model.model)
        teachers = sum(_matrices(a.teacher) for a in state.algorithms if isinstance(a, Distillation) and not a.stored)
        self.flops += (6.0 * weights + 2.0 * teachers) * state.batch['input_ids'].numel()


def _weights_in_use(model: PreTrainedModel, cutter: Cutter) -> int:
    """Weights of all projections that the masks of the moment leave, the LM head among them."""
    total = _routed(model)
    masks = flatten_masks(cutter.masks).to(next(model.parameters()).device)
    for path, cut in cutter.plan.cuts(masks):
        if isinstance(cut.role, Linear) and not path.endswith(cutter.family.embedding):
            rows, columns = model.get_submodule(path).weight.shape
            rows = rows if cut.rows is None else len(cut.rows)
            total += rows * (columns if cut.columns is None else len(cut.columns))
    return total


def _matrices(model: PreTrainedModel) -> int:
    """Weights of all projections, the LM head among them, without the embedding, which is only looked up."""
    return _routed(model) + sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def _routed(model: PreTrainedModel) -> int:
    """Weights of the routed experts that a token passes. Only experts themselves are pruned here, not their width."""
    config = model.config
    experts = getattr(config, 'num_experts_per_tok', 0) * config.num_hidden_layers
    return 3 * experts * config.hidden_size * getattr(config, 'moe_intermediate_size', 0)
