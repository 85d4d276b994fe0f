"""``llmshearing export CHECKPOINT --out FOLDER``: see ``conversion/README.md`` for examples."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmshearing.commands.arguments import command_parser, settings_from, size_argument
from llmshearing.utils.checks import check_number
from llmshearing.utils.paths import local_destination

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        'export',
        'Write a Composer checkpoint (one file or a sharded folder) as a stock Hugging Face folder, and check it.',
    )
    parser.add_argument('checkpoint', help='.pt file or sharded checkpoint folder, here (or a link to one) or remote')
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument(
        '--masks',
        default='target',
        choices=('target', 'current', 'keep'),
        help='cut to exactly the target (default), cut as the masks are now, or keep uncut weights and write the masks',
    )
    parser.add_argument(
        '--dtype',
        default='same',
        choices=('same', 'float32', 'bfloat16', 'float16'),
        help='type of the written weights; default: as in the checkpoint',
    )
    parser.add_argument(
        '--max-shard-size',
        type=size_argument,
        default='2GB',
        help='largest safetensors file, held in memory while it grows, default 2GB',
    )
    parser.add_argument(
        '--allow-unconverged', action='store_true', help='cut to the target although the masks are not there yet'
    )
    parser.add_argument(
        '--tolerance', type=float, default=0.05, help='how far expected counts may be from the target, default 0.05'
    )
    parser.add_argument(
        '--source', help='folder of the source model: licence, name and generation config for the result'
    )
    parser.add_argument('--tokenizer', help='folder to take the tokenizer from; default: the checkpoint')
    parser.add_argument(
        '--metrics', type=Path, help='metrics file of the run (metrics_file logger): last losses for the model card'
    )
    parser.add_argument(
        '--push-to-hub',
        metavar='REPO',
        help='also upload the finished folder to this model repository, as this machine is logged in',
    )
    parser.add_argument(
        '--public', action='store_true', help='with --push-to-hub: make a new repository public; default: private'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an existing folder')
    parser.add_argument('--quiet', dest='progress', action='store_false', help='no progress bar')
    return parser


def main(argv: list[str]) -> int:
    """Exports. Returns 0; errors of the user are raised as ValueError or FileNotFoundError."""
    args = _parser().parse_args(argv)
    check_number('--tolerance', args.tolerance, 0, 1)
    if args.public and not args.push_to_hub:
        raise ValueError('--public is for a repository of --push-to-hub; name one, or leave it out.')
    out = local_destination('--out', args.out)
    from llmshearing.checkpoints.remote import local_copy
    from llmshearing.compat.torch import DTYPES
    from llmshearing.export.hub import check_login, push_folder
    from llmshearing.export.job import export_checkpoint
    from llmshearing.export.settings import ExportSettings

    if args.push_to_hub:
        check_login(args.push_to_hub)
    settings = settings_from(ExportSettings, args, dtype=DTYPES.get(args.dtype), max_shard_bytes=args.max_shard_size)
    with local_copy(args.checkpoint, progress=args.progress) as path:
        report = export_checkpoint(path, out, settings)
    checked = f'{report["tensors_compared"]} tensors read back bit for bit'
    if 'logit_difference' in report:
        checked += f', logits differ from the masked model by at most {report["logit_difference"]:.2g}'
    sys.stdout.write(f'{out}: {report["parameters"]:,} parameters, {report["shape"]}\nchecked: {checked}\n')
    if args.push_to_hub:
        sys.stdout.write(f'uploaded to {push_folder(out, args.push_to_hub, args.public)}\n')
    return 0
