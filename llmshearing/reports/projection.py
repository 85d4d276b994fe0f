"""Where a run will end: the P2 law's loss at the planned tokens, if there is a law and the run is post-training.

The law is fitted by ``llmshearing budget fit`` on earlier, smaller runs. It is shown next to what has been measured
so far, and shifted to pass through the last measurement as a second value: a law that is right about the slope is
often wrong about the level (arXiv 2411.10272 judges its fits by the slope for that reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmshearing.metrics.run_log import NATS, RunLog
from llmshearing.reports.blocks import Section, Table, curve, label, number
from llmshearing.reports.lines import Line
from llmshearing.reports.svg import COLOURS, GREY
from llmshearing.scaling.law_file import read_law
from llmshearing.scaling.run_logs import curve_of_log

__all__ = ['planned_tokens', 'projection_section']

LAW_NAMES = ('LAW.json', 'law.json')


def planned_tokens(run: RunLog) -> float | None:
    """Tokens at the end of the run as planned, from the share of it that has passed; None where nothing tells."""
    share, tokens = run.state.get('elapsed_share'), run.state.get('tokens')
    return tokens / share if share and tokens else None


def projection_section(runs: Sequence[RunLog], law: Path | None) -> Section | None:
    """Loss at the planned end by the P2 law, for runs after pruning."""
    runs = [run for run in runs if not run.is_pruning]
    if not runs or runs[0].loss_unit != NATS:  # which the law is in
        return None
    found = [(run, path) for run in runs if (path := law or _law_beside(run)) is not None]
    if not found:
        text = (
            f'No P2 law: none of {", ".join(LAW_NAMES)} lies beside the metrics, and --law was not given. '
            '`llmshearing budget fit` makes one from earlier runs.'
        )
        return Section('Projected end', [text])
    rows, lines, remarks = [], [], []
    for i, (run, path) in enumerate(found):
        try:
            fitted, _ = read_law(str(path))
            measured = curve_of_log(run.path)
            planned = planned_tokens(run) or float(measured.tokens[-1])
            factor = fitted.extrapolation(measured.params_before, measured.pruning_rate, planned)['factor']
        except ValueError as error:  # what the law needs and the run does not say, or what the law does not cover
            remarks.append(f'No projection of {run.name}: {error}.')
            continue
        if planned_tokens(run) is None:
            remarks.append(
                f'Nothing tells when {run.name} is to end, so the law is shown at its last evaluation; the '
                'callback run_report notes the plan.'
            )
        case = measured.params_before, measured.pruning_rate, measured.source_loss
        last = float(measured.losses[-1])
        end, by_now = (float(fitted.predict(*case, tokens)) for tokens in (planned, measured.tokens[-1]))
        until = np.geomspace(measured.tokens[0], max(planned, measured.tokens[-1]), 60)
        colour = COLOURS[i % len(COLOURS)]
        law_colour = GREY if len(runs) == 1 else colour
        lines.append(Line(label(run, runs, 'measured'), measured.tokens, measured.losses, colour))
        lines.append(Line(label(run, runs, 'law'), until, fitted.predict(*case, until), law_colour, '--'))
        losses = [f'{loss:.4f}' for loss in (last, end, end + (last - by_now), measured.source_loss)]
        rows.append([run.name, number(planned), *losses, f'x{factor:.3g}'])
    header = ['run', 'planned tokens', 'measured last', 'projected end', 'from the last measurement', 'source']
    caption = 'Mean evaluation loss, and what the law says, by tokens.'
    pictures = curve('projection', 'loss by tokens after pruning', caption, lines, NATS, x_label='tokens')
    text = (
        'The P2 law at the planned number of tokens; and the last measurement plus the fall that the law still'
        " promises. The extrapolation factor says how far outside the law's own runs this is."
    )
    table = Table([[*header, 'extrapolation'], *rows])
    return Section('Projected end', [text, *pictures, table, *remarks] if rows else remarks)


def _law_beside(run: RunLog) -> Path | None:
    return next((path for name in LAW_NAMES if (path := run.path.with_name(name)).is_file()), None)
