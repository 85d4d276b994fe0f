"""The demo's report: one page on its three runs, with what was measured on the finished models before them.

The numbers come from :mod:`llmshearing.demo.measure` and are kept as JSON beside the page, so that
``llmshearing report`` can write it again. It states what was reached and what was not in the same breath: the loss that
pruning alone leaves, and the same shape trained from random weights, stand beside the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.reports.build import build_report
from llmshearing.reports.measured import MODEL_NAMES
from llmshearing.utils.files import dump_json

__all__ = ['write_report']

RESULTS = ('source_name', 'models', 'losses', 'tokens', 'samples', 'seconds', 'peak_memory_bytes')


def write_report(work: Path, results: Mapping[str, Any]) -> Path:
    """Writes ``report/report.json`` and the page beside it.

    Args:
        work (Path): The demo's folder, with the metrics of its runs.
        results (Mapping[str, Any]): ``models`` maps source and result to ``measure.describe_model``; ``losses`` maps
            source, pruned, continued and scratch to domain to nats per token; ``tokens`` a stage to the tokens it was
            trained on; ``samples`` a model to its samples; ``seconds`` a phase to its time, in the order of running.

    Returns:
        Path: The page.

    Raises:
        ValueError: Something is missing; it is named, and nothing is written.
    """
    _need(results, RESULTS, 'results')
    _need(results['models'], ('source', 'result'), "results['models']")
    _need(results['losses'], MODEL_NAMES, "results['losses']")
    for name in MODEL_NAMES:
        _need(results['losses'][name], results['losses']['source'], f"results['losses'][{name!r}]")
    dump_json(work / 'report' / 'report.json', {'results': results}, indent=1)
    return build_report(work, out=work / 'report')


def _need(mapping: Mapping[str, Any], keys: Any, where: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f'report data: {where} lacks {missing}; it has {list(mapping)}')
