"""What a pruning step costs, beside the steps it should cost as much as.

In one process, in turn, so that a noisy machine is noisy for all of them: the dense source's training step, a pruning
step with everything kept, pruning steps at the target while masks are learned and after they are frozen, the target
model's own training step, and the usual way to mask, which multiplies activations and computes everything. A step is
forward and backward of one micro-batch; the optimizer's step, which depends on the number of stored parameters and not
on masks, is measured on its own; so are evaluation, a step after which a twentieth of what is to go leaves with
compensation, and the same tokens in four accumulated micro-batches, each of which cuts anew. Medians over rounds, and
medians of the ratios within each round.

``--course`` adds steps on the way, at a quarter, a half and three quarters of the warm-up, and states what a whole run
costs whose warm-up is a fifth of it (as in the paper) beside the same run with multiplied activations.

usage: python benchmarks/prune_step.py [--family llama|llama-gqa|gpt_neox|phi3] [--size small|medium|large]
           [--tokens N] [--rounds N] [--course] [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmshearing.compat.transformers import set_attention
from llmshearing.masks.compensation import Compensation
from llmshearing.masks.axes import plan_axes
from llmshearing.models.cuttable import Cutter
from llmshearing.models.families import family_of
from llmshearing.models.shapes import resolve_target, shape_of, with_shape

VOCABULARY = 4096
LENGTH = 512

# LLaMA2-7B to 1.3B is hidden 4096 to 2048, layers 32 to 24, heads 32 to 16, intermediate 11008 to 5504.
SIZES = {
    'small': (
        dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8),
        dict(hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4),
    ),
    'medium': (
        dict(hidden_size=1024, intermediate_size=2752, num_hidden_layers=8, num_attention_heads=16),
        dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8),
    ),
    'large': (
        dict(hidden_size=2048, intermediate_size=5504, num_hidden_layers=4, num_attention_heads=32),
        dict(hidden_size=1024, intermediate_size=2752, num_hidden_layers=3, num_attention_heads=16),
    ),
    'toy': (
        dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4),
        dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2),
    ),
}
COURSE = (0.25, 0.5, 0.75)
WARMUP_SHARE = 0.2
MICRO_BATCHES = 4
FAMILIES: dict[str, tuple[str, dict, dict]] = {
    'llama': ('llama', {}, {}),
    'llama-gqa': ('llama', {'num_key_value_heads': 4}, {'num_key_value_heads': 2}),
    'gpt_neox': ('gpt_neox', {}, {}),
    'phi3': ('phi3', {'num_key_value_heads': 4, 'pad_token_id': 0}, {'num_key_value_heads': 2}),
}


def build(config) -> nn.Module:
    torch.manual_seed(0)
    set_attention(config, 'sdpa')
    config.use_cache = False
    return AutoModelForCausalLM.from_config(config).train()


def step(model: nn.Module, ids: Tensor, micro_batches: int = 1) -> None:
    """Forward and backward of one batch."""
    model.zero_grad(set_to_none=True)
    for part in ids.chunk(micro_batches):
        model(input_ids=part, labels=part).loss.backward()


def evaluate(model: nn.Module, ids: Tensor) -> None:
    """Forward pass without gradients."""
    model.eval()
    with torch.no_grad():
        model(input_ids=ids, labels=ids)
    model.train()


def mask_activations(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """The usual way: hooks multiply activations by masks; every matrix product is computed at full size."""
    family = family_of(model.config)
    decoder = model.get_submodule(family.decoder)
    hidden = masks['hidden']
    decoder.get_submodule(family.embedding).register_forward_hook(lambda module, args, out: out * hidden)
    for index, layer in enumerate(decoder.layers):
        for name, role in family.roles(index):
            module = layer.get_submodule(name)
            if getattr(role, 'writes', False):
                scale = hidden * masks['layer'][index]
                module.register_forward_hook(lambda module, args, out, scale=scale: out * scale)
            columns = getattr(role, 'columns', None)
            if columns == 'intermediate':
                inner = masks['intermediate'][index]
                module.register_forward_pre_hook(lambda module, args, inner=inner: (args[0] * inner,))
            elif columns == 'query':
                heads = masks['head'][index].repeat_interleave(module.in_features // masks['head'].shape[1])
                module.register_forward_pre_hook(lambda module, args, heads=heads: (args[0] * heads,))


def all_ones(shape) -> dict[str, Tensor]:
    from llmshearing.models.units import mask_shapes

    axes = ('hidden', 'layer', 'head', 'intermediate')
    return {axis: torch.ones(mask_shapes(shape)[axis]) for axis in axes}


def target_masks(source, target, progress: float = 1.0) -> dict[str, Tensor]:
    """Soft masks that keep exactly as many units as the warm-up asks for by then, chosen at random."""
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for axis, plan in plan_axes(source, target).items():
        keep = round(plan.units - progress * (plan.units - plan.keep))
        rows = torch.rand((torch.Size(plan.mask_shape).numel() // plan.units, plan.units), generator=generator)
        top = rows.argsort(dim=1)[:, :keep]
        masks[axis] = torch.zeros_like(rows).scatter_(1, top, 0.98).view(plan.mask_shape)
    return masks


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def models_of(family: str, size: str) -> tuple:
    """Config of the source, and shapes of source and target."""
    model_type, more_source, more_target = FAMILIES[family]
    source_sizes, target_sizes = SIZES[size]
    if 'num_key_value_heads' in more_source:  # a quarter of the query heads
        more_source = {**more_source, 'num_key_value_heads': source_sizes['num_attention_heads'] // 4}
        more_target = {'num_key_value_heads': max(1, target_sizes['num_attention_heads'] // 4)}
        if size == 'toy':
            more_source['num_key_value_heads'] = 2
    config = CONFIG_MAPPING[model_type](
        vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **source_sizes, **more_source
    )
    shape = shape_of(config)
    target = resolve_target(shape, {**target_sizes, **more_target}, family_of(config).has_head_dim)
    return config, shape, target


def tokens_of(size: str, tokens: int) -> Tensor:
    """Random tokens, [sequences, length]."""
    length = 64 if size == 'toy' else LENGTH
    return torch.randint(3, VOCABULARY, (max(1, tokens // length), length), generator=torch.Generator().manual_seed(1))


def matrix_products(model: nn.Module, tokens: int) -> Callable[[], None]:
    """The three products of every projection of a model, on random numbers, and nothing else: the limit of its step."""
    widths = {width for module in _projections(model) for width in (module.in_features, module.out_features)}
    inputs = {width: torch.randn(tokens, width) for width in widths}

    def products():
        for module in _projections(model):
            weight, x, gradient = module.weight.detach(), inputs[module.in_features], inputs[module.out_features]
            torch.mm(x, weight.t())
            torch.mm(gradient, weight)
            torch.mm(gradient.t(), x)

    return products


def _projections(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def measure(family: str, size: str, tokens: int, rounds: int, course: bool) -> dict:
    """All steps of one family in turn; returns seconds per step and ratios."""
    config, shape, target = models_of(family, size)
    ids = tokens_of(size, tokens)
    dense, masked, activations = build(config), build(config), build(config)
    own = build(with_shape(config, target, family_of(config).has_head_dim))
    cutter = Cutter(masked)
    mask_activations(activations, all_ones(shape))
    ones, at_target = all_ones(shape), target_masks(shape, target)
    if 'kv_group' not in at_target and shape.group_size > 1:
        raise ValueError('the target of a grouped-query family must remove whole groups')

    fewer = {axis: (mask > 0).float() for axis, mask in target_masks(shape, target, 0.05).items()}

    frozen = {axis: (mask > 0).float() for axis, mask in at_target.items()}

    def pruning(masks, run=step, **options):
        cutter.set_masks(masks, constant=masks is frozen)
        run(masked, ids, **options)

    def compensating():
        cutter.set_masks({axis: torch.ones_like(mask) for axis, mask in fewer.items()})
        watching = Compensation(cutter, fewer, ids.numel())
        step(masked, ids)
        watching.stop()
        watching.apply(fewer)

    optimizer = torch.optim.AdamW(dense.parameters(), lr=0.0)
    steps = {
        'dense source': lambda: step(dense, ids),
        'pruning, all kept': lambda: pruning(ones),
        'pruning, all kept, compensating': compensating,
        'pruning, at target': lambda: pruning(at_target),
        'pruning, frozen': lambda: pruning(frozen),
        'target model': lambda: step(own, ids),
        "the target's products alone": matrix_products(own, ids.numel()),
        'activation masking': lambda: step(activations, ids),
        'optimizer on the source': lambda: optimizer.step(),
        'evaluation, at target': lambda: pruning(at_target, evaluate),
        'evaluation, target model': lambda: evaluate(own, ids),
        f'{MICRO_BATCHES} micro-batches, frozen': lambda: pruning(frozen, micro_batches=MICRO_BATCHES),
        f'{MICRO_BATCHES} micro-batches, target model': lambda: step(own, ids, MICRO_BATCHES),
    }
    if course:
        on_the_way = {
            f'pruning, {progress:.0%} of the warm-up': target_masks(shape, target, progress) for progress in COURSE
        }
        steps.update({name: lambda masks=masks: pruning(masks) for name, masks in on_the_way.items()})
    for function in steps.values():
        function()
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, function in steps.items():
            times[name].append(seconds(function))

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b]))

    ratios = {
        'all kept / dense source': ratio('pruning, all kept', 'dense source'),
        'compensating / all kept': ratio('pruning, all kept, compensating', 'pruning, all kept'),
        'at target / target model': ratio('pruning, at target', 'target model'),
        'frozen / target model': ratio('pruning, frozen', 'target model'),
        'at target / dense source': ratio('pruning, at target', 'dense source'),
        'at target / activation masking': ratio('pruning, at target', 'activation masking'),
        "at target / the target's products alone": ratio('pruning, at target', "the target's products alone"),
        'activation masking / dense source': ratio('activation masking', 'dense source'),
        'evaluation, at target / target model': ratio('evaluation, at target', 'evaluation, target model'),
        f'{MICRO_BATCHES} micro-batches, frozen / target model': ratio(
            f'{MICRO_BATCHES} micro-batches, frozen', f'{MICRO_BATCHES} micro-batches, target model'
        ),
    }
    if course:
        points = [
            ratio(name, 'activation masking') for name in ('pruning, all kept', *on_the_way, 'pruning, at target')
        ]
        warmup = statistics.fmean((a + b) / 2 for a, b in zip(points, points[1:]))
        ratios['whole run / activation-masked run'] = WARMUP_SHARE * warmup + (1 - WARMUP_SHARE) * points[-1]
    return {
        'family': family,
        'size': size,
        'source': str(shape),
        'target': str(target),
        'tokens': ids.numel(),
        'rounds': rounds,
        'seconds': {
            name: {'median': statistics.median(values), 'min': min(values), 'max': max(values)}
            for name, values in times.items()
        },
        'ratios': ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--family', choices=[*FAMILIES, 'all'], default='llama')
    parser.add_argument('--size', choices=list(SIZES), default='medium')
    parser.add_argument(
        '--course', action='store_true', help='also steps during the warm-up, and the cost of a whole run'
    )
    parser.add_argument('--tokens', type=int, default=4096)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--quick', action='store_true', help='toy shapes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the results as JSON')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = 'toy' if arguments.quick else arguments.size
    families = list(FAMILIES) if arguments.family == 'all' else [arguments.family]
    results = {
        'date': date.today().isoformat(),
        'machine': f'{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, float32',
        'results': [measure(family, size, arguments.tokens, arguments.rounds, arguments.course) for family in families],
    }
    for result in results['results']:
        sys.stdout.write(
            f'\n{result["family"]}, {result["size"]}: {result["tokens"]} tokens\n'
            f'  {result["source"]}\n  -> {result["target"]}\n'
        )
        for name, value in result['seconds'].items():
            sys.stdout.write(f'  {name:<31}{value["median"]:8.3f} s  ({value["min"]:.3f} to {value["max"]:.3f})\n')
        for name, value in result['ratios'].items():
            sys.stdout.write(f'  {name:<42}{value:6.3f}\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
