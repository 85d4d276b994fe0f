"""From a run's folder to its page: each metrics file becomes a chapter, two runs are matched file by file."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmshearing.metrics.run_log import RunLog, find_logs, read_object, read_run, report_folder, run_name
from llmshearing.reports.measured import measured_sections
from llmshearing.reports.page import Chapter, write_page
from llmshearing.reports.projection import projection_section
from llmshearing.reports.pruning_sections import constraints_section, counts_section, masks_section
from llmshearing.reports.status_sections import source_and_result_section, status_section
from llmshearing.reports.training_sections import mixture_section, training_section
from llmshearing.reports.vocabularies import by_vocabulary
from llmshearing.utils.paths import local_destination

__all__ = ['build_report']

log = logging.getLogger(__name__)


def chapter_of(runs: Sequence[RunLog], law: Path | None) -> Chapter:
    """All sections of one stage; of two runs of it, where a second is compared with."""
    sections = [
        status_section(runs),
        projection_section(runs, law),
        source_and_result_section(runs),
        counts_section(runs),
        constraints_section(runs),
        masks_section(runs),
        mixture_section(runs),
        training_section(runs),
    ]
    key = re.sub(r'[^A-Za-z0-9_-]+', '_', run_name(runs[0].path))
    return Chapter(
        ' and '.join(run.name for run in runs), key, [section for section in sections if section is not None]
    )


def match_logs(first: Sequence[Path], second: Sequence[Path]) -> list[list[Path]]:
    """Logs to draw together: of the same name, or simply the two where each side has one.

    The others stand alone, those of the second side last.

    Raises:
        ValueError: Nothing matches.
    """
    if len(first) == len(second) == 1:
        return [[first[0], second[0]]]
    others, names = {path.name: path for path in second}, {path.name for path in first}
    if names.isdisjoint(others):
        raise ValueError(
            f'nothing to compare: the runs have {[path.name for path in first]} and {list(others)}; give two metrics '
            'files'
        )
    together = [[path, others[path.name]] if path.name in others else [path] for path in first]
    return together + [[path] for path in second if path.name not in names]


def read_together(paths: Sequence[Path], compared: bool) -> list[RunLog]:
    """Reads one run, or two whose names are told apart by their folders, and if need be by a number.

    Where runs are compared, one that stands alone says which folder it is of.
    """
    runs = [read_run(path) for path in paths]
    if compared and len({run.name for run in runs}) == 1:
        folders = [run.path.resolve().parent.name for run in runs]
        ends = folders if len(set(folders)) == len(runs) else ['1', '2']
        runs = [replace(run, name=f'{run.name} ({end})') for run, end in zip(runs, ends)]
    return runs


def build_report(run: Path, compare: Path | None = None, out: Path | None = None, law: Path | None = None) -> Path:
    """Writes the report of a run.

    Args:
        run (Path): Metrics file, or folder with some.
        compare (Path | None): Another to draw into the same panels.
        out (Path | None): Folder for page and pictures; default: :func:`~llmshearing.metrics.run_log.report_folder`.
        law (Path | None): LAW.json of ``llmshearing budget fit``; default: the one beside the metrics, if any.

    Returns:
        Path: The page.

    Raises:
        ValueError: No metrics there, or nothing that can be compared.
    """
    if law is not None and not law.is_file():
        raise ValueError(f'--law {law}: no such file; expected what `llmshearing budget fit` writes')
    if out is not None:
        local_destination('--out', out)
    logs = find_logs(run)
    groups = [[path] for path in logs] if compare is None else match_logs(logs, find_logs(compare))
    together = [read_together(group, compare is not None) for group in groups]
    if law is not None and all(one.is_pruning for runs in together for one in runs):
        log.warning(
            '--law %s has no effect: the law is of training after pruning, and there is none in %s.',
            law,
            ', '.join(path.name for group in groups for path in group),
        )
    divided = [by_vocabulary(runs) for runs in together]
    chapters = [chapter_of(runs, law) for drawn, _ in divided for runs in drawn]
    measured = read_object(run / 'report' / 'report.json', []).get('results', {}) if run.is_dir() else {}
    found = measured_sections(measured)
    if found:
        chapters.insert(0, Chapter('the finished models', 'models', found))
    names = [where.resolve().name.removesuffix('_metrics.jsonl') for where in (run, compare) if where is not None]
    lead = f'From {", ".join(path.name for group in groups for path in group)}, written by llmshearing report.'
    alone = [str(group[0]) for group in groups if compare is not None and len(group) == 1]
    if alone:
        lead += f' Without a counterpart in the other run, so in chapters of their own: {", ".join(alone)}.'
    lead += ''.join(f' {told}' for _, told in divided if told)
    return write_page(out or report_folder(run), f'Run report: {" and ".join(names)}', lead, chapters)
