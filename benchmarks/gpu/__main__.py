"""Command line of the GPU's proof.

    python -m benchmarks.gpu [right] [fast] [good] [big] [--quick] [--output DIR] [--minutes 9] [--again]
                             [--source FOLDER-OR-GGUF] [--text FOLDER] [--steps N ...] [--seeds N ...] [--only WORD ...]

Each part writes DIR/PART.json after every case and DIR/table.md at the end. A case that has a result in DIR is not run
again. No case is begun after ``--minutes``, all parts of a call together.
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
    parser.add_argument('--output', type=Path, default=Path('runs/gpu'), help='folder of results; default: %(default)s')
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
    deadline = time.time() + 60 * arguments.minutes
    if arguments.quick:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # for the cases that ask for the same bits twice
    os.environ.setdefault('PYTORCH_CUDA_ALLOC_CONF', 'expandable_segments:True')  # sizes change from step to step
    warnings.filterwarnings('ignore')

    import torch

    from benchmarks.gpu.cases import run_cases, write_table
    from benchmarks.gpu.settings import Settings

    logging.disable(logging.WARNING)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    work = arguments.work or Path(tempfile.gettempdir()) / 'llmshearing-gpu'
    for folder in (arguments.output, work):
        folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        device=device,
        quick=arguments.quick or device == 'cpu',
        work=work,
        source=arguments.source,
        text=arguments.text,
        steps=tuple(arguments.steps),
        seeds=tuple(arguments.seeds),
    )
    failed = False
    for part in arguments.parts or PARTS:
        cases = importlib.import_module(f'benchmarks.gpu.{part}').cases(settings)
        if arguments.only:
            cases = [case for case in cases if any(word in case.name for word in arguments.only)]
        rows = run_cases(part, cases, arguments.output, deadline, arguments.again)
        failed |= any(row['result'].startswith('failed') for row in rows.values())
    sys.stdout.write(write_table(arguments.output, PARTS))
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
