"""``llmshearing trim-vocab SOURCE``: the same model with fewer tokens, those that some text needs most.

    llmshearing trim-vocab models/llama --data data/text --size 32000 --output models/llama-32k
    llmshearing trim-vocab models/teacher --like models/llama-32k --output models/teacher-32k

DATA is what will be trained on: a file or folder of text (JSON lines, Parquet, plain text; each file is a domain), or
a folder that `llmshearing prepare` wrote with the source's tokenizer. Special and added tokens and all bytes stay. On
text whose tokens all stay, tokenizer and model do what the source's do, which is checked before FOLDER appears.
Prepare data again with the new tokenizer: runs refuse what the old one made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmshearing.commands.arguments import LIST, command_parser, settings_from, size_argument, timed_report

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('trim-vocab', __doc__)
    parser.add_argument('source', metavar='SOURCE', type=Path, help='folder of a Hugging Face model')
    parser.add_argument('--data', **LIST, default=[], metavar='DATA', help='text to count tokens on, see above')
    parser.add_argument('--size', type=int, metavar='N', help='tokens that stay, exactly so many')
    parser.add_argument(
        '--multiple-of',
        type=int,
        default=64,
        metavar='N',
        help='what --size must be a multiple of; nothing is rounded (default: %(default)s)',
    )
    parser.add_argument(
        '--keep', type=Path, metavar='FILE', help='tokens that must stay, one a line, as they stand in tokenizer.json'
    )
    parser.add_argument(
        '--like', type=Path, metavar='FOLDER', help='take the tokens of this result, in place of --data and --size'
    )
    parser.add_argument('--output', required=True, metavar='FOLDER', help='where the trimmed model goes')
    parser.add_argument('--text-key', default='text', metavar='KEY', help='field that holds it (default: %(default)s)')
    parser.add_argument(
        '--read-bytes',
        type=size_argument,
        default='64MB',
        metavar='SIZE',
        help='text to read of each domain (default: %(default)s)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace FOLDER if it exists')
    return parser


def main(argv: list[str]) -> int:
    """Runs the command; returns 0. A user's mistake is a ValueError or OSError."""
    arguments = _parser().parse_args(argv)
    if arguments.like is not None and (arguments.data or arguments.size is not None or arguments.keep is not None):
        raise ValueError('--like takes the tokens of a result: leave out --data, --size and --keep.')
    if arguments.like is None and (not arguments.data or arguments.size is None):
        raise ValueError('--data and --size say which tokens stay and how many; give both, or --like.')

    from llmshearing.utils.paths import local_destination
    from llmshearing.vocabulary.settings import TrimSettings
    from llmshearing.vocabulary.trim_source import trim_source

    report = timed_report()
    trim_source(
        arguments.source,
        local_destination('--output', arguments.output),
        settings_from(TrimSettings, arguments),
        arguments.data,
        arguments.like,
        arguments.overwrite,
        report,
    )
    return 0
