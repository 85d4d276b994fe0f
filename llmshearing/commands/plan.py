"""``llmshearing plan SOURCE``: source and target side by side, from a config.json alone, before anything is spent.

    llmshearing plan SOURCE --params 1.3e9                          # a budget proposes a shape
    llmshearing plan SOURCE --size 2.5GB --target num_hidden_layers=24
    llmshearing plan SOURCE --target hidden_size=2048 num_attention_heads=16
    llmshearing plan SOURCE --target fraction.hidden_size=0.5 multiple_of=128
    llmshearing plan SOURCE --params 80M --target vocab_size=32000   # of a source that trim-vocab makes smaller first
    llmshearing plan --config RUN.yaml                              # what this run would do

SOURCE is a model folder or a config.json. No weights are read and nothing is downloaded. So a quantised model can be
planned, and of a multimodal one the text part; what has to be done with it first is said.
"""

from __future__ import annotations

import argparse
import sys

from llmshearing.checkpoints.rotated import is_rotated
from llmshearing.commands.arguments import LIST, command_parser, parse_target
from llmshearing.config.planned_run import read_planned_run, read_teacher
from llmshearing.config.source import read_source, read_to_plan
from llmshearing.utils.files import dump_json
from llmshearing.utils.paths import local_destination

__all__ = ['main']

DEFAULTS = {
    'gpus': 8,
    'sharding': 'fsdp2',
    'micro_batch': 4,
    'seq_len': 4096,
    'activation_checkpointing': False,
    'precision': 'amp_bf16',
}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('plan', __doc__)
    parser.add_argument('source', nargs='?', metavar='SOURCE', help='model folder or config.json')
    target = parser.add_argument_group('target (without one, the source alone is described)')
    target.add_argument(
        '--target',
        **LIST,
        default=[],
        metavar='KEY=VALUE',
        help="any keys of `target:` in a run's YAML; beside a budget, sizes that are given",
    )
    target.add_argument('--params', metavar='N', help='largest number of parameters, such as 1.3e9 or 1.3B')
    target.add_argument('--size', metavar='BYTES', help='largest size on disk, such as 2.5GB')
    target.add_argument('--dtype', help='of --size (default: bfloat16)')
    target.add_argument('--multiple-of', type=int, metavar='N', help='of hidden and intermediate size (default: 64)')
    target.add_argument('--tolerance', type=float, metavar='FRACTION', help='how far below the budget (default: 0.02)')
    target.add_argument('--config', metavar='RUN.yaml', help='take target and training settings from a pruning run')
    setup = parser.add_argument_group('training, for the memory estimate')
    setup.add_argument('--gpus', type=int, metavar='N', help=f'default: {DEFAULTS["gpus"]}')
    setup.add_argument('--sharding', help=f'ddp or fsdp2 (default: {DEFAULTS["sharding"]})')
    setup.add_argument(
        '--micro-batch', type=int, metavar='N', help=f'sequences per GPU (default: {DEFAULTS["micro_batch"]})'
    )
    setup.add_argument('--seq-len', type=int, metavar='N', help=f'tokens per sequence (default: {DEFAULTS["seq_len"]})')
    setup.add_argument(
        '--activation-checkpointing',
        action=argparse.BooleanOptionalAction,
        default=None,
        help='recompute each layer in the backward pass (default: off)',
    )
    setup.add_argument('--precision', help=f'amp_bf16 or fp32 (default: {DEFAULTS["precision"]})')
    parser.add_argument('--json', metavar='FILE', help='also write the plan as JSON')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the plan. Returns 0.

    Raises:
        ValueError: For a source, a target or a setting that is not possible.
    """
    arguments = _parser().parse_args(argv)
    target = parse_target(arguments.target)
    for key in ('params', 'size', 'dtype', 'multiple_of', 'tolerance'):
        value = getattr(arguments, key)
        if value is not None:
            if key in target:
                raise ValueError(f'{key} is given twice, as an option and in --target; keep one of them')
            target[key] = value
    source, source_of_run, settings = arguments.source, None, {}
    if arguments.config is not None:
        if target:
            raise ValueError('--config names the target already; leave out the other options of the target')
        source_of_run, target, settings = read_planned_run(arguments.config)
        source = source or source_of_run
    if source is None:
        raise ValueError('name a SOURCE: a model folder or a config.json')
    if arguments.json is not None:
        local_destination('--json', arguments.json, 'file')
    config, first = read_to_plan(source) if arguments.config is None else (read_source(source), [])
    chosen = {
        key: next(value for value in (getattr(arguments, key), settings.get(key), default) if value is not None)
        for key, default in DEFAULTS.items()
    }
    # Torch and transformers are imported only now, so that wrong usage is answered at once.
    from llmshearing.models.targets import target_shape
    from llmshearing.planning.memory import TrainingSetup
    from llmshearing.planning.plan import make_plan
    from llmshearing.planning.plan_table import plan_lines
    from llmshearing.planning.vocabulary import trim_note, with_vocabulary

    setup = TrainingSetup(**chosen)
    notes = [*first, *settings.get('notes', [])]
    teacher = read_teacher(settings.get('teacher'), source_of_run, config, notes)
    untrimmed = None
    if arguments.config is None and 'vocab_size' in target:
        untrimmed, config = config, with_vocabulary(config, target.pop('vocab_size'))
        notes.append(trim_note(untrimmed.vocab_size, config.vocab_size))
    shape = target_shape(config, target) if target else None
    changes = {name: settings.get(name, False) for name in ('freeze_weights', 'compensate')}
    rotated = is_rotated(source)
    plan = make_plan(config, shape, setup, teacher=teacher, untrimmed=untrimmed, rotated=rotated, **changes)
    plan['notes'] += notes
    sys.stdout.write('\n'.join(plan_lines(plan)) + '\n')
    if arguments.json is not None:
        dump_json(arguments.json, plan, indent=1)
    return 0
