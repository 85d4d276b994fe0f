"""Where a run will end: the P2 law's loss at the planned tokens, if there is a law and the run is post-training.

The law is fitted by ``llmshearing budget fit`` on earlier, smaller runs. It is shown next to what has been measured
so far, and shifted to pass through the last measurement as a second value: a law that is right about the slope is
often wrong about the level (arXiv 2411.10272 judges its fits by the slope for that reason).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmshearing.metrics.run_log import RunLog
from llmshearing.scaling.curves import Curve
from llmshearing.scaling.law_file import read_law
from llmshearing.scaling.run_logs import curve_of_log

__all__ = ['LAW_NAMES', 'Projection', 'find_law', 'planned_tokens', 'project']

LAW_NAMES = ('LAW.json', 'law.json')


@dataclass(frozen=True)
class Projection:
    """A law's answer for one run.

    Args:
        curve: What has been measured: tokens and mean loss over the evaluators.
        tokens: [points] from the first measurement to the planned end.
        law: [points] predicted loss.
        planned_tokens: Tokens at the planned end.
        end: Loss that the law predicts there.
        shifted_end: The same, moved by the law's error at the last measurement.
        extrapolation: How many times outside the law's runs the end lies, the largest of its quantities.
    """

    curve: Curve
    tokens: np.ndarray
    law: np.ndarray
    planned_tokens: float
    end: float
    shifted_end: float
    extrapolation: float


def find_law(folder: Path) -> Path | None:
    """``LAW.json`` (or ``law.json``) in a folder, if there is one."""
    return next((folder / name for name in LAW_NAMES if (folder / name).is_file()), None)


def planned_tokens(run: RunLog) -> float | None:
    """Tokens at the end of the run as planned, from the share of it that has passed; None where nothing tells."""
    share, tokens = run.state.get('elapsed_share'), run.state.get('tokens')
    return tokens / share if share and tokens else None


def project(run: RunLog, law_path: Path) -> Projection:
    """Applies a law to a run.

    Raises:
        ValueError: The run does not say what the law needs (it is named), or the law does not cover it.
    """
    law, _ = read_law(str(law_path))
    curve = curve_of_log(run.path)
    planned = planned_tokens(run)
    if planned is None:
        planned = float(curve.tokens[-1])
    case = curve.params_before, curve.pruning_rate, curve.source_loss
    factor = law.extrapolation(curve.params_before, curve.pruning_rate, planned)['factor']
    tokens = np.geomspace(curve.tokens[0], max(planned, curve.tokens[-1]), 60)
    end = float(law.predict(*case, planned))
    error = float(curve.losses[-1] - law.predict(*case, curve.tokens[-1]))
    return Projection(curve, tokens, law.predict(*case, tokens), planned, end, end + error, factor)
