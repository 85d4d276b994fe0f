"""Peak memory of one step: a pruning step at the target beside a step with multiplied activations.

Each case runs alone in a process of its own, because resident memory never shrinks reliably: two steps of forward and
backward on the source of ``prune_step.py``. Stated are the peak above the libraries, and the part of it that is not the
source's weights and gradients, which every way of training its weights holds (so do the optimizer's two numbers per
weight, left out here).

usage: python benchmarks/step_memory.py [--family llama|llama-gqa|gpt_neox|phi3] [--tokens N] [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from memory_estimate import resident

CASES = ('dense source', 'pruning, all kept', 'pruning, at target', 'activation masking')


def run_case(case: str, family: str, size: str, tokens: int) -> dict[str, int]:
    """Peak bytes of one case above those before the model was built, and the bytes of its weights."""
    from prune_step import all_ones, build, mask_activations, models_of, step, target_masks, tokens_of

    from llmshearing.models.cuttable import Cutter

    config, shape, target = models_of(family, size)
    ids = tokens_of(size, tokens)
    before = resident('VmRSS')
    model = build(config)
    if case.startswith('pruning'):
        cutter = Cutter(model)
        cutter.set_masks(all_ones(shape) if case.endswith('kept') else target_masks(shape, target))
    elif case == 'activation masking':
        # Masks at the target: this way computes everything whatever they are.
        masks = {**all_ones(shape), **target_masks(shape, target)}
        masks.pop('kv_group', None)
        mask_activations(model, masks)
    for _ in range(2):
        step(model, ids)
    return {'peak': resident('VmHWM') - before, 'weights': sum(4 * p.numel() for p in model.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--family', choices=('llama', 'llama-gqa', 'gpt_neox', 'phi3'), default='llama')
    parser.add_argument('--tokens', type=int, default=4096)
    parser.add_argument('--quick', action='store_true', help='toy shapes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the results as JSON')
    parser.add_argument('--case', choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = 'toy' if arguments.quick else 'medium'
    if arguments.case:
        sys.stdout.write(json.dumps(run_case(arguments.case, arguments.family, size, arguments.tokens)))
        return
    results = {}
    # Freed blocks go back to the system, so that the peak is what is alive at a time.
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}
    for case in CASES:
        command = [
            sys.executable,
            __file__,
            '--case',
            case,
            '--family',
            arguments.family,
            '--tokens',
            str(arguments.tokens),
        ]
        command += ['--quick'] if arguments.quick else []
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        results[case] = json.loads(done.stdout)
    reference = results['activation masking']
    sys.stdout.write(f'{arguments.family}, {arguments.tokens} tokens\n')
    for case, result in results.items():
        rest = result['peak'] - 2 * result['weights']
        result['ratio'] = result['peak'] / reference['peak']
        result['ratio_beyond_weights'] = rest / (reference['peak'] - 2 * reference['weights'])
        sys.stdout.write(
            f'  {case:<22} peak {result["peak"] / 1e9:6.2f} GB ({result["ratio"]:.2f} of activation masking), '
            f'beyond weights and gradients {rest / 1e9:6.2f} GB ({result["ratio_beyond_weights"]:.2f})\n'
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
