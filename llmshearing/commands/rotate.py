"""``llmshearing rotate SOURCE``: the same model in a basis of its residual stream in which hidden dimensions cut well.

    llmshearing rotate models/llama --data data/mds --output models/llama-rotated

The result is a stock model of the source's shape that computes the same function; prune it in place of the source.
DATA is a folder that `llmshearing prepare` wrote, or any folder of MDS data, or text as JSON lines, Parquet or .txt.
A rotation that was stopped goes on when it is started again with the same options. Started by torchrun or by
Composer's launcher, its processes share the looking at the text.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from llmshearing.commands.arguments import command_parser, settings_from, timed_report
from llmshearing.utils.processes import choose_device, read_rank

__all__ = ['main']


def _steps(text: str) -> int:
    match = re.fullmatch(r'(\d+)ba', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of batches, such as 200ba')
    return int(match.group(1))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('rotate', __doc__)
    parser.add_argument('source', metavar='SOURCE', type=Path, help='folder of a Hugging Face model (safetensors)')
    parser.add_argument('--data', required=True, type=Path, metavar='DATA', help='text to look at, see above')
    parser.add_argument('--text-key', default='text', metavar='KEY', help='field that holds it (default: %(default)s)')
    parser.add_argument('--output', required=True, metavar='FOLDER', help='where the rotated model goes')
    parser.add_argument('--keep', type=int, metavar='N', help='hidden_size that the model will be cut to')
    parser.add_argument(
        '--learn',
        type=_steps,
        default=0,
        metavar='TIME',
        help='learn the subspace of --keep dimensions for so many batches, such as 200ba; for a cut without training',
    )
    parser.add_argument(
        '--fixed-axes',
        type=int,
        metavar='N',
        help='axes of a model with tied embeddings that stay unrotated (default: 64, at most a quarter of them, or as '
        'many more as it takes)',
    )
    parser.add_argument('--untie', action='store_true', help='give a tied LM head weights of its own instead')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), help='default: as the source')
    parser.add_argument('--tokens', type=int, default=65_536, metavar='N', help='to look at (default: %(default)s)')
    parser.add_argument(
        '--held-out', type=int, default=8_192, metavar='N', help='tokens to measure losses on (default: %(default)s)'
    )
    parser.add_argument(
        '--seq-len',
        type=int,
        metavar='N',
        help="tokens per sequence of plain text (default: 512, or the source's positions where they are fewer)",
    )
    parser.add_argument(
        '--batch-tokens',
        type=int,
        default=2_048,
        metavar='N',
        help='tokens per forward pass and learning step (default: %(default)s)',
    )
    parser.add_argument(
        '--device', metavar='NAME', help='such as cpu or cuda:1 (default: a GPU for each process, if there is one)'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace FOLDER if it exists')
    return parser


def main(argv: list[str]) -> int:
    """Runs the command; returns 0. A user's mistake is a ValueError or OSError."""
    arguments = _parser().parse_args(argv)
    from llmshearing.rotation.rotate_source import rotate_source
    from llmshearing.rotation.settings import RotationSettings
    from llmshearing.utils.paths import local_destination
    from llmshearing.utils.ranks import joined_ranks

    report, (rank, ranks), device = timed_report(), read_rank(), arguments.device or choose_device()
    with joined_ranks(ranks, device):
        try:
            rotate_source(
                arguments.source,
                arguments.data,
                local_destination('--output', arguments.output),
                settings_from(RotationSettings, arguments),
                arguments.overwrite,
                device,
                report,
            )
        except (ValueError, OSError):
            if rank == 0:
                raise
            return 1  # rank 0 says why
    return 0
