"""``llmshearing search SOURCE``: which shape of a budget to ask for, by loss and by speed.

    llmshearing search models/llama --params 1.3B --text articles.jsonl code.parquet --output search
    llmshearing search models/llama --params 1.3B 2B --steps 50 --tokens 10B --text notes.txt --output search

Shapes of one size that lie far from each other are cut from the source and compared on passages that were not looked
at. With --steps the best are trained, each from its own cut on the same sequences, because the loss after training is
what counts. What is finished is kept: a killed search goes on, and several processes on one folder share the work.
"""

from __future__ import annotations

import argparse
import sys

from llmshearing.commands.arguments import (
    LIST,
    command_parser,
    count_argument,
    parse_pairs,
    settings_from,
    size_argument,
    timed_report,
)

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('search', __doc__)
    parser.add_argument('source', metavar='SOURCE', help='folder of a Hugging Face model')
    parser.add_argument('--params', **LIST, required=True, metavar='COUNT', help='budgets, such as 1.3B')
    parser.add_argument('--text', **LIST, default=[], metavar='FILE', help='as for `cut`')
    parser.add_argument('--text-key', default='text', metavar='KEY', help='field that holds it (default: %(default)s)')
    parser.add_argument('--output', required=True, metavar='FOLDER', help='where what is found is kept')
    shapes = parser.add_argument_group('which shapes')
    shapes.add_argument('--candidates', type=int, default=12, help='shapes per budget (default: %(default)s)')
    shapes.add_argument(
        '--pin',
        **LIST,
        default=[],
        metavar='KEY=SIZE',
        help='such as hidden_size=2048; vocab_size=32000 trims the source first',
    )
    shapes.add_argument(
        '--limit', **LIST, default=[], metavar='KEY=LEAST:MOST', help='such as num_hidden_layers=16:24 or =16:'
    )
    shapes.add_argument('--keep-heads', action='store_true', help='cut no heads')
    shapes.add_argument('--multiple-of', type=int, help='step of hidden and intermediate size (default: as `cut`)')
    shapes.add_argument('--tolerance', type=float, default=0.02, help='below the budget (default: %(default)s)')
    shapes.add_argument(
        '--uneven',
        type=float,
        default=2.0,
        help='largest ratio of the shares that are kept of two axes (default: %(default)s)',
    )
    shapes.add_argument(
        '--kv-cache',
        type=size_argument,
        metavar='SIZE',
        help='most KV cache per token in bfloat16, of layers without a sliding window, such as 32KiB',
    )
    shapes.add_argument('--latency', type=float, metavar='MS', help='most milliseconds per token written, here')
    training = parser.add_argument_group('training')
    training.add_argument('--steps', type=int, default=0, help='that the best are trained (default: none)')
    training.add_argument('--train', type=int, default=3, help='candidates that are trained (default: %(default)s)')
    training.add_argument('--batch-size', type=int, default=8, help='sequences per step (default: %(default)s)')
    training.add_argument('--seq-len', type=int, default=256, help='tokens per sequence (default: %(default)s)')
    training.add_argument('--learning-rate', type=float, default=5e-4, help='(default: %(default)s)')
    training.add_argument(
        '--tokens', type=count_argument, metavar='COUNT', help='of the real run: losses are extrapolated to it'
    )
    parser.add_argument('--seed', type=int, default=17, help='which passages are taken (default: %(default)s)')
    parser.add_argument('--device', metavar='NAME', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    return parser


def _whole(option: str, key: str, text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f'{option} {key}={text}: expected a whole number.')
    return int(text)


def _limits(items: list[str]) -> dict[str, tuple[str, str]]:
    """Least and most of each key as text; empty where there is no such limit."""
    limits = {}
    for key, text in parse_pairs('--limit', items).items():
        low, colon, high = text.partition(':')
        if not colon or not (low or high):
            size = low or 'SIZE'
            raise ValueError(
                f'--limit {key}={text}: expected LEAST:MOST. {key}={size}: is at least, {key}=:{size} at most; for one '
                f'size alone: --pin {key}={size}.'
            )
        limits[key] = low, high
    return limits


def main(argv: list[str]) -> int:
    """Runs the command; returns 0. A user's mistake is a ValueError or OSError."""
    arguments = _parser().parse_args(argv)
    import transformers

    from llmshearing.cut.settings import CutSettings
    from llmshearing.search.search_shapes import search_shapes
    from llmshearing.search.settings import SearchSettings
    from llmshearing.utils.paths import local_destination

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # llm-foundry's deprecated arguments are not the user's
    report = timed_report()
    limits = _limits(arguments.limit)
    settings = settings_from(
        SearchSettings,
        arguments,
        pins={key: _whole('--pin', key, text) for key, text in parse_pairs('--pin', arguments.pin).items()},
        least={key: _whole('--limit', key, low) for key, (low, _) in limits.items() if low},
        most={key: _whole('--limit', key, high) for key, (_, high) in limits.items() if high},
        tokens=None if arguments.tokens is None else int(arguments.tokens),
        cut=CutSettings(
            keep_heads=arguments.keep_heads or None,
            seed=arguments.seed,
            seq_len=arguments.seq_len,
            text_key=arguments.text_key,
        ),
    )
    output = local_destination('--output', arguments.output)
    result = search_shapes(
        arguments.source, arguments.params, arguments.text, output, settings, arguments.device, report
    )
    sys.stdout.write('\n' + '\n'.join(result.lines()) + f'\n\npicture: {output / "loss.svg"}\n')
    return 0
