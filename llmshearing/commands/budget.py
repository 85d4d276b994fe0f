"""``llmshearing budget fit|predict|plan``: loss after pruning as a function of the tokens spent (P2 law).

``fit`` turns curves of post-training runs into a law, ``predict`` gives the loss for a budget, ``plan`` the tokens for
a loss, the point where more tokens stop paying, and the split of a budget between pruning and continued pre-training.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict

import numpy as np

from llmshearing.scaling.fields import count_argument, positive_number, write_json
from llmshearing.scaling.intervals import jackknife_interval
from llmshearing.scaling.law_file import RANGES, law_to_json, read_law
from llmshearing.scaling.post_training import CONSTANTS, PostTrainingLaw, check_runs, fit_post_training
from llmshearing.scaling.run_logs import cost_per_token, read_all_runs
from llmshearing.scaling.spending import (
    PRUNING_GAIN,
    Case,
    Split,
    diminishing_point,
    split_beside,
    split_total,
    tokens_for_loss,
)

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
    parser = argparse.ArgumentParser(
        prog='llmshearing budget',
        description=str(__doc__).split('\n\n')[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='command', required=True)
    fit = commands.add_parser('fit', help='fit the law to curves of post-training runs')
    fit.add_argument(
        'runs',
        nargs='+',
        metavar='RUNS',
        help='RUNS.json, or runs of this suite, each a metrics file (.jsonl) or its folder',
    )
    fit.add_argument(
        '--huber',
        type=float,
        metavar='ERROR',
        help='relative error beyond which a point counts linearly (default: least squares)',
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
    rate = positive_number(arguments.pruning_rate, '--pruning-rate')
    if rate >= 1:
        raise ValueError(f'--pruning-rate is the fraction of the parameters removed, between 0 and 1; got {rate:g}')
    return Case(arguments.params_before, rate, positive_number(arguments.source_loss, '--source-loss'))


def _reach(law: PostTrainingLaw, case: Case, tokens: float) -> str:
    factors = law.extrapolation(case.params_before, case.pruning_rate, tokens)
    outside = ', '.join(f'{name} x{factors[name]:.3g}' for name in RANGES if factors[name] > 1)
    return f'extrapolation factor {factors["factor"]:.3g} ({outside or "inside the range of the runs"})'


def _slopes(row: dict) -> str:
    if row['average_slope'] is None:
        return ''
    return (
        f', average slope difference {row["average_slope_difference"]:.3g} of {row["average_slope"]:.3g} nats per '
        f'1e9 tokens'
    )


def fit(arguments: argparse.Namespace) -> int:
    """Runs ``fit``: writes LAW.json and says how well the law fits."""
    if arguments.huber is not None:
        positive_number(arguments.huber, '--huber')
    runs = read_all_runs(arguments.runs)
    notes = check_runs(runs)
    law = fit_post_training(runs, arguments.huber)
    content = law_to_json(law, runs, arguments.huber, notes)
    write_json(arguments.output, content)
    quality = content['fit']
    lines = ['constants: ' + ', '.join(f'{name} {law.constants[name]:.4g}' for name in CONSTANTS)]
    for row in quality['runs']:
        worst = 100 * row['worst_residual']
        lines.append(f'{row["name"]}: {row["points"]} points, worst residual {worst:.2f} %{_slopes(row)}')
    rms, worst = 100 * quality['rms_residual'], 100 * quality['worst_residual']
    lines.append(f'all: rms residual {rms:.3f} %, worst {worst:.2f} %{_slopes(quality)}')
    lines += [f'note: {note}' for note in notes] + [f'written: {arguments.output}']
    sys.stdout.write('\n'.join(lines) + '\n')
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Runs ``predict``: one line with the loss, the extrapolation factor and the interval."""
    law, others = read_law(arguments.law)
    case = _case(arguments)
    reach = _reach(law, case, arguments.tokens)
    values = [float(one.predict(*_values(case), arguments.tokens)) for one in (law, *others)]
    if not (all(map(math.isfinite, values)) and values[0] > 0):
        raise ValueError(
            f'the law gives no sensible loss here ({values[0]:.4g}; {reach}); fit it to runs nearer to this case'
        )
    interval = jackknife_interval(values[0], np.array(values[1:]), len(others) - 1)
    spread = 'no interval from fewer than three runs'
    if interval is not None:
        spread = f'90 % {interval[0]:.4f} to {interval[1]:.4f}'
    sys.stdout.write(f'predicted loss: {values[0]:.6f} | {reach} | {spread}\n')
    return 0


def _values(case: Case) -> tuple[float, float, float]:
    return case.params_before, case.pruning_rate, case.source_loss


def _split_line(split: Split) -> str:
    held = ', held at the end of the range that has been tried' if split.held else ''
    return (
        f'split: {split.pruning_tokens:.4g} pruning tokens and {split.continued_tokens:.4g} continued tokens, '
        f'total cost {split.total_cost:.4g} (pruning {100 * split.pruning_share:.1f} % of the tokens{held})'
    )


def _costs(arguments: argparse.Namespace) -> tuple[float, float, bool]:
    """Cost of a token of pruning and of continuing, and whether both were measured."""
    given = {'--pruning-cost': str(arguments.pruning_cost), '--continue-cost': str(arguments.continue_cost)}
    logs = [option for option, value in given.items() if value.endswith('.jsonl')]
    if len(logs) == 2:
        pruning, continuing = map(cost_per_token, given.values())
        return pruning, continuing, True
    if logs:
        raise ValueError(
            f'{logs[0]} is a metrics file and the other cost a number, which are in different units; '
            f'give two files or two numbers'
        )
    values = []
    for option, value in given.items():
        try:
            values.append(positive_number(float(value), option))
        except ValueError as error:
            raise ValueError(f'{option} must be a positive number or a metrics file (.jsonl), got {value!r}') from error
    return values[0], values[1], False


def plan(arguments: argparse.Namespace) -> int:
    """Runs ``plan``: up to three answers, each with its split and how far it extrapolates."""
    law, _ = read_law(arguments.law)
    case = _case(arguments)
    for option in ('target_loss', 'least_gain', 'pruning_gain'):
        if getattr(arguments, option) is not None:
            positive_number(getattr(arguments, option), '--' + option.replace('_', '-'))
    if (arguments.more_tokens is None) != (arguments.least_gain is None):
        raise ValueError('--more-tokens and --least-gain belong together; give both or neither')
    if arguments.target_loss is None and arguments.more_tokens is None and arguments.total_cost is None:
        raise ValueError('nothing to plan; give --target-loss, --more-tokens with --least-gain, or --total-cost')
    pruning_cost, continue_cost, measured = _costs(arguments)
    costs = pruning_cost, continue_cost, arguments.pruning_gain
    floor = law.floor(*_values(case))
    lines, answers = [], {}

    def answer(key: str, line: str, split: Split | None, tokens: float) -> None:
        loss = float(law.predict(*_values(case), tokens)) if tokens > 0 else None
        lines.append(line if split is None else f'{line}\n  {_split_line(split)}')
        answers[key] = {'tokens': tokens, 'predicted_loss': loss, 'split': None if split is None else asdict(split)}

    if measured:
        lines.append(
            f'cost per token: {pruning_cost:.4g} pruning, {continue_cost:.4g} continued '
            f'(x{pruning_cost / continue_cost:.3g}), measured, in hours unless speed_monitor has another '
            f'time_unit'
        )
    lines.append(f'floor: {floor:.4f} is the loss this law never gets below')
    if arguments.target_loss is not None:
        tokens = tokens_for_loss(law, case, arguments.target_loss)
        answer(
            'target_loss',
            f'tokens needed: {tokens:.6g} for a loss of {arguments.target_loss:g} | {_reach(law, case, tokens)}',
            split_beside(law, case, tokens, *costs),
            tokens,
        )
    if arguments.more_tokens is not None:
        tokens = diminishing_point(law, case, arguments.more_tokens, arguments.least_gain)
        what = f'another {arguments.more_tokens:g} tokens buy less than {arguments.least_gain:g}'
        if tokens == 0:
            answer('diminishing', f'diminishing point: 0; already the first tokens: {what}', None, 0.0)
        else:
            loss = float(law.predict(*_values(case), tokens))
            answer(
                'diminishing',
                f'diminishing point: {tokens:.6g} tokens (loss {loss:.4f}), after it {what} | '
                f'{_reach(law, case, tokens)}',
                split_beside(law, case, tokens, *costs),
                tokens,
            )
    if arguments.total_cost is not None:
        split = split_total(law, case, arguments.total_cost, *costs)
        loss = float(law.predict(*_values(case), split.continued_tokens))
        answer(
            'total_cost',
            f'predicted loss: {loss:.6f} for a total cost of {arguments.total_cost:g} | '
            f'{_reach(law, case, split.continued_tokens)}',
            split,
            split.continued_tokens,
        )
    if arguments.output:
        write_json(
            arguments.output,
            {
                'params_before': case.params_before,
                'pruning_rate': case.pruning_rate,
                'source_loss': case.source_loss,
                'floor': floor,
                'answers': answers,
            },
        )
        lines.append(f'written: {arguments.output}')
    sys.stdout.write('\n'.join(lines) + '\n')
    return 0


def main(argv: list[str]) -> int:
    """Entry point of ``llmshearing budget``."""
    arguments = _parser().parse_args(argv)
    return {'fit': fit, 'predict': predict, 'plan': plan}[arguments.command](arguments)
