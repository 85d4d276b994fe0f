"""``llmshearing report RUN``: one HTML page and PNGs of a run, while it trains or afterwards.

RUN is a metrics file (of the logger ``metrics_file``) or a folder with some; each becomes a chapter. ``--compare``
draws a second run into the same panels, chapter by chapter. torch is not needed and not imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmshearing.commands.arguments import command_parser
from llmshearing.reports.build import build_report

__all__ = ['main']


def main(argv: list[str]) -> int:
    """Entry point of ``llmshearing report``."""
    parser = command_parser('report', str(__doc__).split('\n\n')[1])
    parser.add_argument('run', metavar='RUN', type=Path, help='metrics file, or folder with some')
    parser.add_argument('--compare', metavar='RUN2', type=Path, help='another run to draw into the same panels')
    parser.add_argument(
        '--out', metavar='FOLDER', type=Path, help='where page and pictures go (default: beside the metrics)'
    )
    parser.add_argument(
        '--law',
        metavar='LAW.json',
        type=Path,
        help='P2 law to project the end with (default: LAW.json beside the metrics, if any)',
    )
    arguments = parser.parse_args(argv)
    page = build_report(arguments.run, arguments.compare, arguments.out, arguments.law)
    sys.stdout.write(f'written: {page}\n')
    return 0
