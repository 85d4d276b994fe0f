"""``llmshearing init SOURCE``: the two YAMLs of a real run, from the source, the prepared data and the hardware.

    llmshearing init models/Llama-3.1-8B --target params=3B --data DATA --gpus 8
    llmshearing init meta-llama/Llama-2-7b-hf --target num_hidden_layers=24 hidden_size=2048 --data DATA --gpus 16
    llmshearing init models/Llama-3.1-8B --target params=3B --data DATA --gpus 8 --tokens 10B --output runs/mine

Writes prune.yaml and continue.yaml with a comment on every key, checked as their runs will check them, and says what to
run next. DATA is a folder that `llmshearing prepare` wrote with the splits prune, continue and eval. Of the source only
its config.json is needed; give `--gpus 0` for a CPU.
"""

from __future__ import annotations

import argparse
import sys

from llmshearing.commands.arguments import LIST, command_parser, count_argument, parse_target, settings_from
from llmshearing.recipes.rules import TEACHERS

__all__ = ['main']

ASKED = {
    'target': '--target says how small: give such as --target params=1.3B',
    'data': '--data says what to train on: give the folder that `llmshearing prepare` wrote',
    'gpus': '--gpus says what to train on: give their number, or 0 for a CPU',
}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('init', __doc__)
    parser.add_argument('source', metavar='SOURCE', help='model folder, config.json or name on the Hugging Face Hub')
    parser.add_argument(
        '--target',
        **LIST,
        metavar='KEY=VALUE',
        help='as for `llmshearing plan`; a budget may take heads, which `cut` keeps',
    )
    parser.add_argument('--data', metavar='FOLDER', help='prepared data')
    parser.add_argument('--gpus', type=int, metavar='N', help='how many GPUs; 0 is a CPU')
    parser.add_argument('--gpu-memory', type=float, default=80, metavar='GB', help='of each GPU (default: %(default)s)')
    parser.add_argument(
        '--tokens',
        type=count_argument,
        metavar='D',
        help="of continued pre-training, such as 10B (default: one pass over its split, at most the paper's 53.7B)",
    )
    parser.add_argument(
        '--prune-tokens',
        type=count_argument,
        metavar='D',
        help="of pruning (default: one pass over its split, at most the paper's 0.42B)",
    )
    parser.add_argument(
        '--max-passes', type=float, default=4.0, metavar='N', help='most passes over a split (default: %(default)s)'
    )
    parser.add_argument(
        '--reference-losses',
        dest='references',
        default='source',
        metavar='FILE|source|law|none',
        help="a file; or the source's own, or those of a law, for which the command is told; none: a constant mixture "
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--teacher',
        choices=TEACHERS,
        default='none',
        help='the source is run beside the student, or its predictions are stored in the data once, for which the '
        'command is told: better at equal tokens, for more compute (default: %(default)s)',
    )
    parser.add_argument('--work', metavar='FOLDER', help='of checkpoints and results (default: runs/NAME)')
    parser.add_argument('--output', default='.', metavar='FOLDER', help='where the two files go (default: here)')
    parser.add_argument('--overwrite', action='store_true', help='replace files of these names')
    return parser


def main(argv: list[str]) -> int:
    """Runs the command; returns 0. A user's mistake is a ValueError or OSError."""
    arguments = _parser().parse_args(argv)
    for name, sentence in ASKED.items():
        if getattr(arguments, name) is None:
            raise ValueError(f'{sentence}.')
    # Torch and transformers are imported only now, so that wrong usage is answered at once.
    from llmshearing.recipes.hardware import Hardware
    from llmshearing.recipes.request import Request
    from llmshearing.recipes.write import write_recipes

    request = settings_from(
        Request,
        arguments,
        source=arguments.source.rstrip('/') or '/',
        target=parse_target(arguments.target),
        hardware=Hardware(arguments.gpus, arguments.gpu_memory),
    )
    sys.stdout.write('\n'.join(write_recipes(request, arguments.overwrite)) + '\n')
    return 0
