"""``llmshearing prepare SPEC.yaml``: the command line of :func:`llmshearing.prepare.pipeline.prepare`.

``llmshearing prepare --check FOLDER`` looks at what is there already: :func:`llmshearing.prepare.check.check`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

from llmshearing.commands.arguments import command_parser
from llmshearing.config.yaml_file import read_yaml
from llmshearing.prepare.check import check
from llmshearing.prepare.pipeline import prepare
from llmshearing.prepare.tables import check_table, feeding_table
from llmshearing.utils.checks import check_integer

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('prepare', 'Turn raw text into tokenized MDS splits.')
    parser.add_argument('spec', nargs='?', help='YAML file: see data_prep/README.md and yamls/data/')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='change keys, e.g. max_seq_len=2048')
    parser.add_argument('--out', help='output folder or remote address, instead of the one in the spec')
    parser.add_argument('--workers', type=int, help='worker processes (default: all cores)')
    parser.add_argument('--batch-size', type=int, default=32, help='sequences in a batch, for the table (default: 32)')
    parser.add_argument('--overwrite', action='store_true', help='replace folders that another run left in OUT')
    parser.add_argument('--quiet', action='store_true', help='no progress bars and no table')
    parser.add_argument('--check', metavar='FOLDER', help='check finished MDS folders and do nothing else')
    parser.add_argument('--vocab-size', type=int, help="with --check: the model's vocabulary, for all ids to be in")
    return parser


def _read_spec(path: str, overrides: list[str]) -> dict[str, Any]:
    """The keys of a YAML file, with those that the command line changes.

    Raises:
        ValueError: If the file is no YAML or holds something else, or a value refers to nothing, in one line.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} does not exist; expected a YAML file')
    if bad := [o for o in overrides if '=' not in o]:
        raise ValueError(f'{bad[0]!r} is not of the form key=value')
    spec = read_yaml(f'{path}, with {" ".join(overrides)}' if overrides else path, path, overrides)
    if not isinstance(spec, dict):
        raise ValueError(f'{path}: it holds {spec!r}, expected a mapping from keys to values')
    return spec


def main(argv: list[str]) -> int:
    """Runs the command. Returns 0 when done, 130 when interrupted."""
    args = _parser().parse_intermixed_args(argv)  # options may stand between the overrides
    if args.batch_size < 1:
        raise ValueError(f'--batch-size is {args.batch_size}; expected at least 1')
    if args.vocab_size is not None and args.check is None:
        raise ValueError('--vocab-size belongs to --check FOLDER; leave it out, or check the result with it')
    if args.check is not None:
        if args.spec is not None or args.out or args.overwrite:
            raise ValueError('--check FOLDER looks at what is there and prepares nothing; leave the others out')
        if args.vocab_size is not None:
            check_integer('--vocab-size', args.vocab_size, 1)
        found = check(args.check, args.vocab_size)
        sys.stdout.write('' if args.quiet else check_table(found) + '\n')
        return 0
    if args.spec is None:
        raise ValueError('expected the name of a YAML file, or --check FOLDER')
    spec = _read_spec(args.spec, args.overrides)
    if args.out:
        spec['out'] = args.out
    spec.pop('variables', None)  # a place for values that are used more than once, as in llm-foundry's files
    logging.basicConfig(format='%(message)s', level=logging.ERROR if args.quiet else logging.WARNING)
    try:
        manifest = prepare(spec, workers=args.workers, overwrite=args.overwrite, progress=not args.quiet)
    except KeyboardInterrupt:
        sys.stderr.write('llmshearing prepare: interrupted; the same command continues where it stopped\n')
        return 130
    if not args.quiet:
        sys.stdout.write(feeding_table(manifest, args.batch_size) + '\n')
    return 0
