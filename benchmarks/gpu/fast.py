"""``fast``: what a pruning step costs on the card, beside the steps it should cost as much as.

Every case builds one model with random weights in bfloat16, alone on the card, and measures one kind of step: forward
and backward of one micro-batch, for pruning with the masks installed before and their gradients read after it. The rows
at the end set the kinds beside each other. ``prune_step.py`` defines the steps; this measures them on a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from prune_step import all_ones, mask_activations, target_masks
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu import timing
from benchmarks.gpu.cases import Case, NotThere, Row
from benchmarks.gpu.machine import matmul_rate
from benchmarks.gpu.settings import Settings
from llmshearing.masks.axes import plan_axes
from llmshearing.masks.hard_concrete import sample_gate
from llmshearing.models import cutting
from llmshearing.models.cuttable import Cutter
from llmshearing.models.shapes import ModelShape, resolve_target, shape_of, with_shape

__all__ = ['cases']

DATASHEET = {'H100': 989e12, 'H200': 989e12}  # dense bfloat16, SXM
MATMUL = 'matrix product'
PRUNING = {'all kept': 'pruning, all kept', 'target': 'pruning, at target'}
RATIOS = (
    ('all kept / dense', PRUNING['all kept'], 'dense source', 1.03),
    ('at target / target model', PRUNING['target'], 'target model', 1.05),
    ('at target / activation masking', PRUNING['target'], 'activation masking', None),
    ('at target / dense', PRUNING['target'], 'dense source', None),
)
WHOLE_RUN, WHOLE_RUN_AIM = 'whole run / activation-masked run', 0.35
WARMUP_SHARE = 0.2  # of a pruning run, as in the paper
COURSE = (0.25, 0.5, 0.75)
DRAWS = 6  # masks of the noise that a step takes in turn
LIKELY, UNLIKELY = 2.5, -4.2  # log alpha of gates that are open, and closed, in most draws


@dataclasses.dataclass(frozen=True)
class Pair:
    """A source and a target.

    Attributes:
        name (str): As in the table.
        source (dict): Settings of a LlamaConfig.
        target (dict): What differs in the target.
        length (int): Tokens per sequence.
        tokens (tuple[int, ...]): Per micro-batch.
        checkpointing (int): From so many tokens on, activations are computed twice, by every kind of step.
    """

    name: str
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    length: int
    tokens: tuple[int, ...]
    checkpointing: int


LLAMA_32 = dict(vocab_size=128256, tie_word_embeddings=True, rope_theta=500000.0, max_position_embeddings=8192)
SMALL = Pair(
    'Llama-3.2-1B to 0.4B',
    dict(
        LLAMA_32,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
    ),
    dict(hidden_size=1280, intermediate_size=4608, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=8),
    4096,
    (16384, 8192, 32768),
    32768,
)
LARGE = Pair(
    'Llama-3.2-3B to 1B',
    dict(
        LLAMA_32,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
    ),
    dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=16, num_key_value_heads=8),
    4096,
    (8192, 16384, 32768),
    16384,
)
TOY = Pair(
    'toy',
    dict(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    ),
    dict(hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2),
    32,
    (64,),
    1 << 30,
)


@dataclasses.dataclass
class Setting:
    """One pair at one number of tokens on one device: what every kind of step is built from."""

    pair: Pair
    tokens: int
    device: str

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(use_cache=False, bos_token_id=0, eos_token_id=0, **self.pair.source)

    @property
    def shapes(self) -> tuple[ModelShape, ModelShape]:
        source = shape_of(self.config)
        return source, resolve_target(source, dict(self.pair.target), True)

    @property
    def ids(self) -> Tensor:
        length = min(self.pair.length, self.tokens)
        ids = torch.randint(
            3, self.config.vocab_size, (self.tokens // length, length), generator=torch.Generator().manual_seed(1)
        )
        return ids.to(self.device)

    def model(self, of_target: bool = False) -> nn.Module:
        """The source, or the target's shape, in bfloat16 with random weights and in training mode."""
        torch.manual_seed(0)
        config = with_shape(self.config, self.shapes[1], True) if of_target else self.config
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                config, torch_dtype=torch.bfloat16, attn_implementation='sdpa'
            ).train()
        if self.tokens >= self.pair.checkpointing:
            model.gradient_checkpointing_enable({'use_reentrant': False})
        return model

    def flops(self, of_target: bool) -> float:
        """Of a step's matrix products, forward and backward, causal attention counted once; nothing computed twice."""
        shape = self.shapes[int(of_target)]
        query = shape.num_attention_heads * shape.head_dim
        key_value = shape.num_key_value_heads * shape.head_dim
        layer = 2 * shape.hidden_size * (query + key_value) + 3 * shape.hidden_size * shape.intermediate_size
        weights = shape.num_hidden_layers * layer + shape.hidden_size * self.config.vocab_size
        attention = shape.num_hidden_layers * query * min(self.pair.length, self.tokens)
        return 6.0 * self.tokens * (weights + attention)


def run_step(model: nn.Module, ids: Tensor) -> None:
    """Forward and backward of one micro-batch."""
    model.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids).loss.backward()


def dense(setting: Setting, of_target: bool = False, compiled: bool = False) -> Callable[[], None]:
    model, ids = setting.model(of_target), setting.ids
    if compiled:
        model.compile()
    return lambda: run_step(model, ids)


def activations(setting: Setting) -> Callable[[], None]:
    """The usual way to mask; it computes everything, whatever the masks are."""
    model, ids = setting.model(), setting.ids
    masks = {axis: mask.to(setting.device, torch.bfloat16) for axis, mask in all_ones(setting.shapes[0]).items()}
    mask_activations(model, masks)
    return lambda: run_step(model, ids)


def pruning(setting: Setting, masks: list[dict[str, Tensor]], multiple_of: int = 1, compiled: bool = False):
    """A step that takes the given masks in turn."""
    model, ids = setting.model(), setting.ids
    cutter, turn = Cutter(model), itertools.cycle(masks)
    if compiled:
        model.compile()

    def step() -> None:
        cutter.set_masks(next(turn), multiple_of)
        run_step(model, ids)
        cutter.mask_gradients()

    return step


def noisy_masks(source: ModelShape, target: ModelShape, fixed: tuple[str, ...] = ('layer',)) -> list[dict[str, Tensor]]:
    """Draws of gates that have learned their target: counts vary from step to step and from layer to layer.

    Args:
        fixed (tuple[str, ...]): Axes that keep exactly the target's units.
    """
    exact, plans = target_masks(source, target), plan_axes(source, target)
    draws = []
    for number in range(DRAWS):
        generator = torch.Generator().manual_seed(number)
        draw = {}
        for axis in plans:
            log_alpha = torch.where(exact[axis] > 0, LIKELY, UNLIKELY)
            draw[axis] = exact[axis] if axis in fixed else sample_gate(log_alpha, generator)
        draws.append(draw)
    return draws


def optimizer_step(setting: Setting) -> Callable[[], None]:
    """AdamW on the source: its cost depends on what is stored, not on masks."""
    model = setting.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=setting.device == 'cuda')
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return lambda: optimizer.step()


def measure(
    build: Callable[[], Callable[[], None]], setting: Setting, of_target: bool, quick: bool, rows: Mapping
) -> Row:
    """One kind of step: time, rates, peak, waits and kernels."""
    step, device = build(), setting.device
    taken = timing.times(step, device, 1 if quick else 3, 1 if quick else 7)
    seconds = statistics.median(taken)
    rate = setting.flops(of_target) / seconds
    row: Row = {'ms': 1000 * seconds, 'from': 1000 * min(taken), 'to': 1000 * max(taken)}
    row |= {'tokens/s': round(setting.tokens / seconds), 'TFLOP/s': rate / 1e12}
    if MATMUL in rows and 'TFLOP/s' in rows[MATMUL]:
        row['of matmul rate'] = row['TFLOP/s'] / rows[MATMUL]['TFLOP/s']
    if device == 'cuda':
        sheet = next((flops for name, flops in DATASHEET.items() if name in torch.cuda.get_device_name()), None)
        row |= {'of datasheet': rate / sheet} if sheet else {}
        peak = timing.peak_bytes(step, device)
        row |= {f'{name} GiB': value / 2**30 for name, value in peak.items()}
        waits = timing.synchronisations(step, device)
        row |= {'waits': sum(waits.values()), 'where it waits': waits}
        row |= timing.launches(step, device)
    return row


def of_matmul(settings: Settings, rows: Mapping) -> Row:
    size = 256 if settings.quick else 8192
    rate = matmul_rate(settings.device, size, torch.bfloat16)
    return {'size': size, 'TFLOP/s': rate / 1e12}


def ratios(label: str, rows: Mapping[str, Row]) -> Row:
    """Ratios of medians, and the cost of a whole run whose warm-up is a fifth of it."""
    found, aims = {}, {name: aim for name, _, _, aim in RATIOS if aim is not None} | {WHOLE_RUN: WHOLE_RUN_AIM}
    own = {name.removeprefix(f'{label}: '): row for name, row in rows.items() if name.startswith(label)}
    ms = {name: row['ms'] for name, row in own.items() if 'ms' in row}
    for name, above, below, _ in RATIOS:
        if above in ms and below in ms:
            found[name] = ms[above] / ms[below]
    way = [PRUNING['all kept'], *(f'pruning, {share:.0%} of the warm-up' for share in COURSE), PRUNING['target']]
    if all(name in ms for name in (*way, 'activation masking')):
        parts = [ms[name] / ms['activation masking'] for name in way]
        warmup = statistics.fmean((a + b) / 2 for a, b in itertools.pairwise(parts))
        found[WHOLE_RUN] = WARMUP_SHARE * warmup + (1 - WARMUP_SHARE) * parts[-1]
    if not found:
        raise NotThere('no two kinds of step to compare')
    told = (f'{name} {value:.3f}' + (f' (aim {aims[name]})' if name in aims else '') for name, value in found.items())
    return {'summary': '; '.join(told), 'ratios': found}


@contextlib.contextmanager
def kernels(used: bool) -> Iterator[None]:
    """Cuts with the package's own kernels, or with PyTorch's operators."""
    before, cutting.USE_KERNELS = cutting.USE_KERNELS, used and cutting.USE_KERNELS
    try:
        yield
    finally:
        cutting.USE_KERNELS = before


def cut_alone(setting: Setting, quick: bool, used: bool) -> Row:
    """Time of all cuts of a step at the target, forward and backward: what a faster cut could save."""
    model = setting.model()
    cutter, masks = Cutter(model), target_masks(*setting.shapes)
    cutter.set_masks(masks)
    cutter.bind()
    values = cutter._values
    gradients: dict[tuple, Tensor] = {}

    def cut() -> None:
        for module in cutter._modules.values():
            if module.cut is None:
                continue
            weight = module.cut.parameters(module._parameters)['weight']
            if weight is not module.weight:
                gradient = gradients.setdefault(tuple(weight.shape), torch.ones_like(weight))
                torch.autograd.grad(weight, [module.weight, values], gradient, retain_graph=True, allow_unused=True)

    with kernels(used):
        row: Row = {'ms': 1000 * timing.median_seconds(cut, setting.device, 1 if quick else 3, 1 if quick else 7)}
        return row | ({} if setting.device == 'cpu' else timing.launches(cut, setting.device))


def installing(setting: Setting, quick: bool) -> Row:
    """Host time of a step that no kernel hides: installing masks and binding them."""
    model = setting.model()
    cutter, draws = Cutter(model), itertools.cycle(noisy_masks(*setting.shapes))

    def install() -> None:
        cutter.set_masks(next(draws))
        cutter.bind()

    return {'ms': 1000 * timing.median_seconds(install, 'cpu', 2, 3 if quick else 15)}


def kinds(setting: Setting, first: bool) -> Iterator[tuple[str, Callable[[], Callable[[], None]], bool]]:
    """Name, builder and whether the target's products are counted, of each kind of step; ``first``: all of them."""
    source, target = setting.shapes
    at = functools.partial(target_masks, source, target)
    yield 'dense source', lambda: dense(setting), False
    yield PRUNING['all kept'], lambda: pruning(setting, [all_ones(source)]), False
    yield PRUNING['target'], lambda: pruning(setting, [at()]), True
    yield 'target model', lambda: dense(setting, of_target=True), True
    yield 'activation masking', lambda: activations(setting), False
    if not first:
        return
    for share in COURSE:
        yield (f'pruning, {share:.0%} of the warm-up', lambda share=share: pruning(setting, [at(share)]), True)
    for multiple in (1, 64, 128):
        yield (
            f'pruning, noisy counts, multiple_of {multiple}',
            lambda multiple=multiple: pruning(setting, noisy_masks(source, target), multiple),
            True,
        )
    yield (
        'pruning, noisy counts but hidden, multiple_of 64',
        lambda: pruning(setting, noisy_masks(source, target, ('layer', 'hidden')), 64),
        True,
    )
    yield 'optimizer on the source', lambda: optimizer_step(setting), False
    yield 'target model, compiled', lambda: dense(setting, of_target=True, compiled=True), True
    yield 'pruning, at target, compiled', lambda: pruning(setting, [at()], compiled=True), True


def cases(settings: Settings) -> list[Case]:
    """All cases of the part, the most telling first."""
    plan = (
        [(TOY, 64)]
        if settings.quick
        else [
            (SMALL, SMALL.tokens[0]),
            (LARGE, LARGE.tokens[0]),
            (LARGE, LARGE.tokens[1]),
            (SMALL, SMALL.tokens[1]),
            (SMALL, SMALL.tokens[2]),
            (LARGE, LARGE.tokens[2]),
        ]
    )
    found = [Case(MATMUL, functools.partial(of_matmul, settings))]
    for number, (pair, tokens) in enumerate(plan):
        setting = Setting(pair, tokens, settings.device)
        label = f'{pair.name}, {tokens} tokens' + (', checkpointing' if tokens >= pair.checkpointing else '')
        for name, build, of_target in kinds(setting, number < 2):
            if settings.quick and 'compiled' in name:
                continue  # a minute of a compiler, for nothing
            found.append(
                Case(
                    f'{label}: {name}',
                    lambda rows, build=build, setting=setting, of_target=of_target: measure(
                        build, setting, of_target, settings.quick, rows
                    ),
                )
            )
        if number < 2:
            for words, used in (('', True), (", by PyTorch's operators", False)):
                found.append(
                    Case(
                        f'{label}: cuts alone{words}',
                        lambda rows, s=setting, used=used: cut_alone(s, settings.quick, used),
                    )
                )
            found.append(Case(f'{label}: masks installed', lambda rows, s=setting: installing(s, settings.quick)))
        found.append(Case(f'{label}: ratios', functools.partial(ratios, label)))
    return found
