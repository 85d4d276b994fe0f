"""``llmshearing demo``: prunes a real 135M model on this machine and continues its pre-training."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmshearing.demo.run import run_demo

__all__ = ['main']


def main(argv: list[str]) -> int:
    """Runs the demo. Returns 0 when the report is written."""
    parser = argparse.ArgumentParser(
        prog='llmshearing demo',
        description='Prune SmolLM2-135M to 40 % of its parameters, continue its pre-training, and write a report.',
    )
    parser.add_argument('--work', type=Path, default=Path('runs/demo'), help='folder for everything the demo makes')
    parser.add_argument('--prune-steps', type=int, default=48, help='steps of pruning (default: %(default)s)')
    parser.add_argument(
        '--continue-steps', type=int, default=36, help='steps of continued pre-training (default: %(default)s)'
    )
    arguments = parser.parse_args(argv)
    run_demo(arguments.work, arguments.prune_steps, arguments.continue_steps)
    return 0
