"""``llmshearing budget fit|predict|plan``: loss after pruning as a function of the tokens spent (P2 law).

``fit`` turns curves of post-training runs into a law, ``predict`` gives the loss for a budget, ``plan`` the tokens for
a loss, the point where more tokens stop paying, and the split of a budget between pruning and continued pre-training.
"""

from __future__ import annotations

import argparse
import sys

from llmshearing.commands.arguments import command_parser, count_argument
from llmshearing.scaling.budget_report import SpendingPlan, fit_law_file, predict_loss, read_costs
from llmshearing.scaling.fields import positive_number, removed_fraction, write_json
from llmshearing.scaling.law_file import read_law
from llmshearing.scaling.spending import PRUNING_GAIN, Case
from llmshearing.utils.paths import local_destination

__all__ = ['main']


def _add_case(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('law', metavar='LAW.json', help='what `budget fit` wrote')
    parser.add_argument(
        '--params-before', required=True, type=count_argument, metavar='N', help='parameters before pruning'
    )
    parser.add_argument(
        '--pruning-rate', required=True, type=float, metavar='R', help='fraction of the parameters removed'
    )
    parser.add_argument('--source-loss', required=True, type=float, metavar='L', help='loss of the unpruned model')


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('budget', str(__doc__).split('\n\n')[1])
    commands = parser.add_subparsers(dest='command', required=True)
    fit = commands.add_parser('fit', help='fit the law to curves of post-training runs')
    fit.add_argument(
        'runs',
        nargs='+',
        metavar='RUNS',
        help='RUNS.json, or runs of this suite, each a metrics file (.jsonl) or its folder',
    )
    fit.add_argument('--output', required=True, metavar='LAW.json')
    predict = commands.add_parser('predict', help='loss after a number of post-training tokens')
    _add_case(predict)
    predict.add_argument('--tokens', required=True, type=count_argument, metavar='D', help='post-training tokens')
    plan = commands.add_parser('plan', help='tokens for a loss, where more stop paying, split of a budget')
    _add_case(plan)
    plan.add_argument('--target-loss', type=float, metavar='X', help='how many tokens reach this loss')
    plan.add_argument(
        '--more-tokens',
        type=count_argument,
        metavar='x',
        help='with --least-gain: after how many tokens do another x ...',
    )
    plan.add_argument('--least-gain', type=float, metavar='y', help='... lower the loss by less than y nats')
    plan.add_argument(
        '--total-cost',
        type=count_argument,
        metavar='C',
        help='divide this cost between pruning and continued pre-training (a number of tokens at the default costs)',
    )
    plan.add_argument(
        '--pruning-cost',
        default=1.0,
        metavar='P',
        help='cost of a token of pruning: a number in any unit, or the metrics file of a pruning '
        'run, for the time per token it measured (default: %(default)s)',
    )
    plan.add_argument(
        '--continue-cost',
        default=1.0,
        metavar='C',
        help='cost of a token of continued pre-training, likewise (default: %(default)s)',
    )
    plan.add_argument(
        '--pruning-gain',
        type=float,
        default=PRUNING_GAIN,
        metavar='NATS',
        help='fall of the final loss when the pruning tokens double (default: %(default).4f, from the paper)',
    )
    plan.add_argument('--output', metavar='PLAN.json', help='also write the plan as JSON')
    return parser


def _case(arguments: argparse.Namespace) -> Case:
    rate = removed_fraction(arguments.pruning_rate, '--pruning-rate')
    return Case(arguments.params_before, rate, positive_number(arguments.source_loss, '--source-loss'))


def plan(arguments: argparse.Namespace) -> list[str]:
    """Up to three answers, each with its split and how far it extrapolates."""
    law, _ = read_law(arguments.law)
    case = _case(arguments)
    for option in ('target_loss', 'least_gain', 'pruning_gain'):
        if getattr(arguments, option) is not None:
            positive_number(getattr(arguments, option), '--' + option.replace('_', '-'))
    if (arguments.more_tokens is None) != (arguments.least_gain is None):
        raise ValueError('--more-tokens and --least-gain belong together; give both or neither')
    if arguments.target_loss is None and arguments.more_tokens is None and arguments.total_cost is None:
        raise ValueError('nothing to plan; give --target-loss, --more-tokens with --least-gain, or --total-cost')
    costs = read_costs(str(arguments.pruning_cost), str(arguments.continue_cost), arguments.pruning_gain)
    spending = SpendingPlan(law, case, costs)
    if arguments.target_loss is not None:
        spending.answer_target_loss(arguments.target_loss)
    if arguments.more_tokens is not None:
        spending.answer_diminishing(arguments.more_tokens, arguments.least_gain)
    if arguments.total_cost is not None:
        spending.answer_total_cost(arguments.total_cost)
    if not arguments.output:
        return spending.lines
    write_json(arguments.output, spending.as_json())
    return [*spending.lines, f'written: {arguments.output}']


def main(argv: list[str]) -> int:
    """Entry point of ``llmshearing budget``."""
    arguments = _parser().parse_args(argv)
    if getattr(arguments, 'output', None):
        local_destination('--output', arguments.output, 'file')
    if arguments.command == 'fit':
        lines = fit_law_file(arguments.runs, arguments.output)
    elif arguments.command == 'predict':
        lines = [predict_loss(arguments.law, _case(arguments), arguments.tokens)]
    else:
        lines = plan(arguments)
    sys.stdout.write('\n'.join(lines) + '\n')
    return 0
