"""``llmshearing reference-losses fit|measure``: the reference losses that ``dynamic_batch_loading`` reads.

``measure`` gives the loss of a model (usually the source) on the prepared evaluation splits, ``fit`` predicts the loss
a model of the target size would have from several measured models of one family. Both write the same kind of file.
"""

from __future__ import annotations

import argparse
import sys

from llmshearing.commands.arguments import LIST, command_parser, count_argument
from llmshearing.scaling.fields import write_json
from llmshearing.scaling.points import read_points
from llmshearing.scaling.reference_report import predict_reference_losses, report_lines
from llmshearing.utils.paths import local_destination

__all__ = ['main']


def _whole(text: str) -> int:
    value = count_argument(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f'expected a whole number, got {text!r}')
    return int(value)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(',') if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f'expected names of domains such as web,code, got {text!r}')
    return names


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('reference-losses', str(__doc__).split('\n\n')[1])
    commands = parser.add_subparsers(dest='command', required=True)
    fit = commands.add_parser('fit', help='predict the losses of a target size from measured models of one family')
    fit.add_argument(
        'points', nargs='+', metavar='POINTS', help='POINTS.json or .csv; models of several files are joined'
    )
    fit.add_argument(
        '--params', required=True, type=count_argument, metavar='N', help='parameters of the target, e.g. 1.3e9 or 1.3B'
    )
    fit.add_argument(
        '--tokens',
        type=count_argument,
        metavar='D',
        help='training tokens to predict at, where the models differ in theirs (default: the most of any)',
    )
    fit.add_argument('--domains', type=_names, metavar='A,B', help='only these domains (default: all)')
    fit.add_argument('--output', required=True, metavar='REF.json', help='where to write the reference losses')

    measure = commands.add_parser('measure', help='loss of models on prepared evaluation splits')
    measure.add_argument('models', nargs='+', metavar='MODEL', help='Hugging Face model folders')
    measure.add_argument('--data', required=True, metavar='DATA', help='folder that `llmshearing prepare` wrote')
    measure.add_argument('--split', default='eval', help='which split of it (default: %(default)s)')
    measure.add_argument('--domains', type=_names, metavar='A,B', help='only these domains (default: all)')
    measure.add_argument(
        '--tokens',
        **LIST,
        type=count_argument,
        metavar='D',
        help='training tokens of each model, in the same order, to be kept with its point',
    )
    measure.add_argument(
        '--batch-size', type=_whole, default=4, help='sequences in a forward pass (default: %(default)s)'
    )
    measure.add_argument(
        '--max-sequences', type=_whole, metavar='K', help='only the first K sequences of a domain (default: all)'
    )
    measure.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
        help='of the forward pass (default: %(default)s)',
    )
    measure.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, ... (default: %(default)s)')
    measure.add_argument(
        '--output', required=True, metavar='OUT.json', help='REF.json for one model, POINTS.json for several'
    )
    return parser


def fit(arguments: argparse.Namespace) -> int:
    """Runs ``fit``: writes REF.json and one line per domain."""
    points = read_points(arguments.points, arguments.domains)
    report = predict_reference_losses(points, arguments.params, arguments.tokens)
    write_json(arguments.output, report)
    lines = [*report_lines(report), f'written: {arguments.output}']
    sys.stdout.write('\n'.join(lines) + '\n')
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Runs ``measure``: writes REF.json (one model) or POINTS.json (several)."""
    # Imported here so that fit does not wait for torch.
    from llmshearing.scaling.measure import find_domains, measure_models

    if arguments.tokens is not None and len(arguments.tokens) != len(arguments.models):
        raise ValueError(
            f'--tokens has {len(arguments.tokens)} numbers for {len(arguments.models)} models; give one for each'
        )
    domains = find_domains(arguments.data, arguments.split, arguments.domains)
    points = measure_models(
        arguments.models,
        domains,
        arguments.batch_size,
        arguments.max_sequences,
        arguments.dtype,
        arguments.device,
        lambda line: sys.stderr.write(line + '\n'),
    )
    for entry, tokens in zip(points, arguments.tokens or ()):
        entry['tokens'] = tokens
    content: dict = {'models': points}
    if len(points) == 1:
        # A single model is a reference by itself, and still a point that `fit` can read beside others.
        content |= {'reference_losses': points[0]['losses'], 'source': 'measured', 'params': points[0]['params']}
    write_json(arguments.output, content)
    for entry in points:
        sys.stdout.write(
            f'{entry["name"]}: {entry["params"]} parameters, '
            + ', '.join(f'{domain} {loss:.4f}' for domain, loss in entry['losses'].items())
            + '\n'
        )
    sys.stdout.write(f'written: {arguments.output}\n')
    return 0


def main(argv: list[str]) -> int:
    """Entry point of ``llmshearing reference-losses``."""
    arguments = _parser().parse_args(argv)
    local_destination('--output', arguments.output, 'file')
    return {'fit': fit, 'measure': measure}[arguments.command](arguments)
