"""Command line of the GPU's proof.

    python -m benchmarks.gpu [right] [fast] [good] [big] [--quick] [--output DIR] [--minutes 9] [--again]
                             [--source FOLDER-OR-GGUF] [--text FOLDER] [--steps N ...] [--seeds N ...] [--only WORD ...]

Each part writes DIR/PART.json after every case and DIR/table.md at the end. A case that has a result in DIR is not run
again; one in which the command was stopped is, once. No case is begun after ``--minutes``, all parts of a call
together, nor one that by those before it would end later.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

PARTS = ('right', 'fast', 'good', 'big')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.gpu', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)}; default: all')
    parser.add_argument('--quick', action='store_true', help='tiny shapes on the CPU')
    parser.add_argument('--output', type=Path, help='folder of results; default: runs/gpu, or runs/gpu-quick')
    parser.add_argument('--work', type=Path, help='folder for models and data; default: one in the temporary folder')
    parser.add_argument('--minutes', type=float, default=9.0, help='no case is begun later; default: %(default)s')
    parser.add_argument('--again', action='store_true', help='run again what failed')
    parser.add_argument('--only', nargs='+', help='cases whose name holds one of these words')
    parser.add_argument('--source', type=Path, help='good: model folder or GGUF of SmolLM2; default: a small LLaMA')
    parser.add_argument('--text', type=Path, help="good: folder of .jsonl files; default: the installation's own text")
    parser.add_argument('--steps', type=int, nargs='+', default=[400], help='good: budgets; default: 400')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1], help='good: default: 1')
    arguments = parser.parse_args(argv)
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f'unknown part {", ".join(sorted(unknown))}; possible: {", ".join(PARTS)}.')
    for name in ('source', 'text'):
        given = getattr(arguments, name)
        if given is not None and not given.exists():
            parser.error(f'--{name}: there is no {given}.')
    if min(*arguments.steps, *arguments.seeds, 1) < 1:
        parser.error('--steps and --seeds are 1 or more.')
    deadline = time.time() + 60 * arguments.minutes
    if arguments.quick:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # for the cases that ask for the same bits twice
    os.environ.setdefault('PYTORCH_CUDA_ALLOC_CONF', 'expandable_segments:True')  # sizes change from step to step
    warnings.filterwarnings('ignore')

    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        parser.error(_needed(error))

    from benchmarks.gpu.cases import refuse_others, run_cases, write_table
    from benchmarks.gpu.machine import describe
    from benchmarks.gpu.settings import Settings

    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    quick = arguments.quick or device == 'cpu'
    if quick and not arguments.quick:
        sys.stderr.write('no GPU is seen: quick mode, on the CPU\n')
    output = (arguments.output or Path('runs/gpu-quick' if quick else 'runs/gpu')).resolve()
    work = (arguments.work or Path(tempfile.gettempdir()) / 'llmshearing-gpu').resolve() / (
        'quick' if quick else 'full'
    )
    machine = describe(quick)
    try:
        for name, folder in (('--output', output), ('--work', work)):
            _check_writable(name, folder)
        refuse_others(output, PARTS, machine)
    except ValueError as error:
        parser.error(str(error))
    settings = Settings(
        device=device,
        quick=quick,
        work=work,
        source=arguments.source and arguments.source.resolve(),
        text=arguments.text and arguments.text.resolve(),
        steps=tuple(arguments.steps),
        seeds=tuple(arguments.seeds),
    )
    failed, chosen = False, 0
    for part in arguments.parts or PARTS:
        try:
            cases = importlib.import_module(f'benchmarks.gpu.{part}').cases(settings)
        except ModuleNotFoundError as error:
            sys.stderr.write(f'{part}: not run: {_needed(error)}\n')
            failed = True
            continue
        if arguments.only:
            cases = [case for case in cases if any(word in case.name for word in arguments.only)]
        chosen += len(cases)
        rows = run_cases(part, cases, output, deadline, arguments.again, machine)
        failed |= any(row['result'].startswith('failed') for row in rows.values())
    if arguments.only and not chosen and not failed:
        parser.error(f'--only: no case has {" or ".join(map(repr, arguments.only))} in its name; the table has them.')
    sys.stdout.write(write_table(output, PARTS))
    return int(failed)


def _needed(error: ModuleNotFoundError) -> str:
    return f'{error.name} is not installed; `make gpu` installs all there is, constraints/wheels.py fetches it.'


def _check_writable(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f'{option}: {folder} cannot be written ({error.strerror}); name another folder.') from error


if __name__ == '__main__':
    sys.exit(main())
