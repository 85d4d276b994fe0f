"""``llmshearing teach DATA``: a teacher's predictions beside the tokens, for distillation without running the teacher.

    llmshearing teach data/mds --teacher models/llama-7b --output data/mds-taught
    llmshearing teach data/mds --teacher models/llama-7b --output data/mds-taught -n 8
    llmshearing teach data/mds --teacher models/llama-7b --output data/mds-taught --like models/llama-32k

DATA is what `llmshearing prepare` wrote. Train on the output with `algorithms.distillation: {stored: true}`, or
without a teacher. A call that was stopped goes on when it is repeated; several may work on one output at a time, also
from several machines.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from llmshearing.commands.arguments import LIST, command_parser, settings_from, timed_report
from llmshearing.utils.processes import choose_device, read_rank

__all__ = ['main']

INTERRUPTED = 130


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('teach', __doc__)
    parser.add_argument('data', metavar='DATA', help='folder of prepared splits, or any MDS folder')
    parser.add_argument('--teacher', required=True, metavar='MODEL', help='Hugging Face folder or cached name')
    parser.add_argument('--output', required=True, metavar='FOLDER', help='where the data with the column go')
    parser.add_argument(
        '--draws',
        type=int,
        metavar='N',
        help="draws of the teacher's distribution per token (default: 64 bytes' worth)",
    )
    parser.add_argument('--top-k', type=int, metavar='K', help='keep the K likeliest tokens and one bucket instead')
    parser.add_argument(
        '--temperature',
        type=float,
        default=1.0,
        metavar='T',
        help="divides logits, as the run's (default: %(default)s)",
    )
    parser.add_argument('--seed', type=int, default=17, metavar='N', help='of the draws (default: %(default)s)')
    parser.add_argument(
        '--like', type=Path, metavar='FOLDER', help='the data have the tokens of this result of trim-vocab'
    )
    parser.add_argument(
        '--shared-vocab-size', type=int, metavar='N', help='take the first N tokens; the others are padding'
    )
    parser.add_argument(
        '--splits', **LIST, metavar='SPLIT', help='folders to teach; others are copied (default: all but eval)'
    )
    parser.add_argument(
        '--batch-tokens', type=int, default=4096, metavar='N', help='in a forward pass (default: %(default)s)'
    )
    parser.add_argument('--dtype', metavar='TYPE', help='of the teacher (default: bfloat16 on a GPU, else float32)')
    parser.add_argument('--device', metavar='NAME', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    parser.add_argument('-n', type=int, default=1, metavar='N', help='processes on this machine (default: %(default)s)')
    return parser


def main(argv: list[str]) -> int:
    """Runs the command. Returns 0 when done, and where other processes are at work on the rest."""
    arguments = _parser().parse_args(argv)
    if arguments.n < 1:
        raise ValueError(f'-n {arguments.n}: expected at least one process.')
    if arguments.n > 1:
        try:
            return _start_processes(argv, arguments.n)
        except KeyboardInterrupt:  # of which every process tells
            return INTERRUPTED
    import torch

    from llmshearing.teacher.settings import TeachSettings
    from llmshearing.teacher.teach import teach
    from llmshearing.utils.paths import local_destination

    settings = settings_from(TeachSettings, arguments, splits=arguments.splits and tuple(arguments.splits))
    device = arguments.device or choose_device()
    if device == 'cpu':
        torch.set_num_threads(1)  # how many there are decides the last bits; -n takes more cores
    output = local_destination('--output', arguments.output)
    try:
        teach(arguments.data, arguments.teacher, output, settings, device, *read_rank(), timed_report())
    except KeyboardInterrupt:
        sys.stderr.write('llmshearing teach: interrupted; the same command continues where it stopped\n')
        return INTERRUPTED
    return 0


def _start_processes(arguments: list[str], count: int) -> int:
    """Teaches in several processes, started as torchrun would; their first exit code that is not 0, else 0."""
    command = [sys.executable, '-m', 'llmshearing.cli', 'teach', *arguments, '-n', '1']
    environment = {**os.environ, 'WORLD_SIZE': str(count)}
    running = [
        subprocess.Popen(command, env={**environment, 'RANK': str(rank), 'LOCAL_RANK': str(rank)})
        for rank in range(count)
    ]
    try:
        return next((code for code in [process.wait() for process in running] if code), 0)
    finally:
        for process in running:
            process.terminate()
            process.wait()
