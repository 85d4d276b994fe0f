"""``llmshearing cut SOURCE``: a smaller model from a model folder and some text, in minutes and without training.

    llmshearing cut models/llama --target params=1.3B --text articles.jsonl code.parquet --output models/small
    llmshearing cut models/llama --target num_hidden_layers=24 hidden_size=2048 --text notes.txt --output models/small

Units are chosen by what they do on the text, weights are changed so that what stays takes over from what goes, and the
losses before and after are measured on passages that were not looked at. The result is a stock Hugging Face folder, to
be tried out, or trained further.
"""

from __future__ import annotations

import argparse
import sys

from llmshearing.commands.arguments import LIST, command_parser, parse_pairs, parse_target, settings_from, timed_report

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('cut', __doc__)
    parser.add_argument('source', metavar='SOURCE', help='folder of a Hugging Face model')
    parser.add_argument(
        '--target',
        **LIST,
        required=True,
        metavar='KEY=VALUE',
        help="keys of `target:` in a run's YAML, such as params=80M, hidden_size=2048 or fraction.hidden_size=0.5",
    )
    parser.add_argument(
        '--text',
        **LIST,
        default=[],
        metavar='FILE',
        help='JSON lines, Parquet or plain text, by content; losses are told of each',
    )
    parser.add_argument('--text-key', default='text', metavar='KEY', help='field that holds it (default: %(default)s)')
    parser.add_argument('--output', required=True, metavar='FOLDER', help='where the smaller model goes')
    parser.add_argument(
        '--axes',
        **LIST,
        metavar='AXIS',
        help='what may be cut, of layer, hidden, head, intermediate and expert (default: all)',
    )
    parser.add_argument(
        '--keep-heads',
        action=argparse.BooleanOptionalAction,
        default=None,
        help='cut no heads (default: where the target is a budget that names none)',
    )
    parser.add_argument(
        '--scores',
        **LIST,
        metavar='METHOD',
        help='how units are chosen: a method, or AXIS=METHOD ... (default: activation; block_importance for layers; '
        'position for hidden dimensions in a learned basis)',
    )
    parser.add_argument(
        '--rotate',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='turn the residual stream to its principal directions first, where hidden dimensions go (default: on)',
    )
    parser.add_argument('--seed', type=int, default=17, help='which passages are taken (default: %(default)s)')
    parser.add_argument('--dtype', metavar='TYPE', help='of the written weights (default: as the source)')
    parser.add_argument('--device', metavar='NAME', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    return parser


def parse_scores(items: list[str] | None) -> str | dict[str, str] | None:
    """``['taylor']`` or ``['layer=perplexity', 'hidden=activation']`` as the settings take them.

    Raises:
        ValueError: For several items of which one names no axis, or two the same.
    """
    if items and len(items) == 1 and '=' not in items[0]:
        return items[0]
    return parse_pairs('--scores', items or [], 'one method, or AXIS=METHOD of each axis once') or None


def main(argv: list[str]) -> int:
    """Runs the command; returns 0. A user's mistake is a ValueError or OSError."""
    arguments = _parser().parse_args(argv)

    from llmshearing.cut.cut_source import cut_source
    from llmshearing.cut.settings import CutSettings
    from llmshearing.utils.paths import local_destination

    report = timed_report()
    settings = settings_from(CutSettings, arguments, scores=parse_scores(arguments.scores))
    result = cut_source(
        arguments.source,
        parse_target(arguments.target),
        arguments.text,
        local_destination('--output', arguments.output),
        settings,
        arguments.device,
        report,
        progress=True,
    )
    sys.stdout.write('\n' + '\n'.join(result.lines()) + '\n')
    return 0
