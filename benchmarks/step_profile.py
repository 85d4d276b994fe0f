"""Where the time of a pruning step goes: the shares of matrix products, attention, cutting and everything else.

Steps with everything kept, at the target, with masks frozen there, and of the target model itself are traced with
torch's profiler, after warming up; time is that of each operator itself, without what it calls. Operators are counted,
too: on a GPU each is a kernel or more, and the host must keep ahead of them. Views and allocations are not counted.
``prune_step.py`` compares the step with its matrix products alone.

usage: python benchmarks/step_profile.py [--family llama|llama-gqa|gpt_neox|phi3] [--tokens N] [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from prune_step import all_ones, build, models_of, step, target_masks, tokens_of
from torch.profiler import ProfilerActivity, profile, record_function

from llmshearing.models.cuttable import Cutter
from llmshearing.models.families import family_of
from llmshearing.models.shapes import with_shape

GROUPS = {
    'matrix products': ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::mkldnn'),
    'attention': ('aten::_scaled_dot_product', 'aten::_flash_attention'),
    'loss': ('aten::_log_softmax', 'aten::nll_loss', 'aten::_softmax'),
    'rows and columns taken and put back': ('aten::index_select', 'aten::index_copy', 'aten::index_add'),
    'zeros and fills': ('aten::fill_', 'aten::zero_'),
    'copies': ('aten::copy_', 'aten::cat'),
    'sums': ('aten::sum', 'aten::mean'),
    'products and sums by element': (
        'aten::mul',
        'aten::add',
        'aten::sub',
        'aten::div',
        'aten::neg',
        'aten::pow',
        'aten::rsqrt',
    ),
    'activations': ('aten::silu', 'aten::gelu', 'aten::sigmoid'),
    'memory': ('aten::empty', 'aten::resize', 'aten::new_empty'),
}


def shares(run: Callable[[], None]) -> tuple[dict[str, float], int]:
    """Share of each group of operators in a step's own time, and of all cutting; and how many operators it has."""
    for _ in range(2):
        run()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        with record_function('python between operators'):
            run()
    events = trace.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    result = dict.fromkeys(GROUPS, 0.0)
    others: dict[str, float] = {}
    operators = 0
    for event in events:
        group = next((name for name, starts in GROUPS.items() if event.key.startswith(starts)), None)
        share = event.self_cpu_time_total / total
        if group is None:
            others[event.key] = share
        else:
            result[group] += share
            operators += event.count if group != 'memory' else 0
    result['everything else'] = sum(others.values())
    result['of everything else, the largest: ' + max(others, key=others.get)] = max(others.values())
    cuts = [event for event in events if event.key in ('_CutWeight', '_CutWeightBackward')]
    result['(within the above) cutting and scaling weights'] = sum(event.cpu_time_total for event in cuts) / total
    return result, operators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--family', choices=('llama', 'llama-gqa', 'gpt_neox', 'phi3'), default='llama')
    parser.add_argument('--tokens', type=int, default=4096)
    parser.add_argument('--quick', action='store_true', help='toy shapes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the results as JSON')
    arguments = parser.parse_args()
    size = 'toy' if arguments.quick else 'medium'
    config, shape, target = models_of(arguments.family, size)
    ids = tokens_of(size, arguments.tokens)
    model = build(config)
    cutter = Cutter(model)
    results = {}

    def pruning(masks: dict[str, torch.Tensor], constant: bool = False) -> None:
        cutter.set_masks(masks, constant=constant)
        step(model, ids)

    at_target = target_masks(shape, target)
    frozen = {axis: (mask > 0).float() for axis, mask in at_target.items()}
    own = build(with_shape(config, target, family_of(config).has_head_dim))
    for name, run in {
        'everything kept': lambda: pruning(all_ones(shape)),
        'at the target': lambda: pruning(at_target),
        'frozen at the target': lambda: pruning(frozen, constant=True),
        'the target model': lambda: step(own, ids),
    }.items():
        groups, operators = shares(run)
        results[name] = {**groups, 'operators': operators}
        sys.stdout.write(f'{arguments.family}, {ids.numel()} tokens, {name}: {operators:,} operators\n')
        for group, share in sorted(groups.items(), key=lambda item: -item[1]):
            sys.stdout.write(f'  {group:<60}{share:7.1%}\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
