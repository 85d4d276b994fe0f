"""``llmshearing train RUN.yaml key=value``: a run through Composer's launcher, from an installed package."""

from __future__ import annotations

import argparse
import os
import sys

__all__ = ['launch_command', 'main']

EXAMPLES = """\
examples:
  llmshearing train RUN.yaml                               one process per GPU, or one on CPU
  llmshearing train -n 4 RUN.yaml max_duration=100ba       four processes, one key changed
  llmshearing train --world_size 16 --node_rank 1 --master_addr HOST --master_port 7501 -n 8 RUN.yaml

Options before RUN.yaml are those of Composer's launcher: --world_size, --base_rank, --node_rank, --master_addr,
--master_port, --stdout, --stderr, --verbose (`composer --help` describes them). These do the same:
  composer -n 4 llmshearing/train.py RUN.yaml              in a checkout
  composer -n 4 -c llmfoundry train RUN.yaml               llm-foundry's own command
"""


def launch_command(argv: list[str]) -> list[str]:
    """The command of Composer's launcher.

    Args:
        argv (list[str]): Options of the launcher, the YAML file, and keys to change.

    Raises:
        ValueError: If no argument is a YAML file.
    """
    at = next((number for number, argument in enumerate(argv) if argument.endswith(('.yaml', '.yml'))), None)
    if at is None:
        raise ValueError('expected a RUN.yaml; see `llmshearing train --help`')
    stray = [argument for argument in argv[at + 1 :] if '=' not in argument]
    if stray:
        raise ValueError(f'expected key=value after {argv[at]}, got {stray[0]!r}; options stand before the YAML file')
    launcher = [sys.executable, '-m', 'composer.cli.launcher']
    options = ['-n' if argument == '--nproc' else argument for argument in argv[:at]]
    return [*launcher, *options, '-m', 'llmshearing.train', *argv[at:]]


def main(argv: list[str]) -> int:
    """Replaces this process by the launcher, whose exit code is the run's.

    Raises:
        ValueError: As :func:`launch_command`.
    """
    if not argv or {'-h', '--help'} & set(argv):
        parser = argparse.ArgumentParser(
            prog='llmshearing train',
            usage='llmshearing train [-n N] [launcher options] RUN.yaml [key=value ...]',
            description='Train as a YAML file says: pruning, continued pre-training, or any run of llm-foundry.',
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument('-n', '--nproc', metavar='N', help='processes on this machine (default: one per GPU, or 1)')
        parser.add_argument('yaml', metavar='RUN.yaml', help='configuration of the run')
        parser.add_argument(
            'overrides', nargs='*', metavar='key=value', help='keys to change, dotted: optimizer.lr=1e-4'
        )
        if argv:
            parser.parse_args(['--help'])  # prints it and ends
        parser.print_help()
        return 2
    sys.stdout.flush()
    command = launch_command(argv)
    os.execv(command[0], command)
