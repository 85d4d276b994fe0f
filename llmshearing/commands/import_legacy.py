"""``llmshearing import``: checkpoints of the paper's code to model folders, and back with ``--to-legacy``.

See ``conversion/README.md``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmshearing.commands.arguments import LIST, command_parser, parse_target, settings_from, size_argument
from llmshearing.utils.paths import local_destination

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        'import', 'Turn a state dict of the first Sheared LLaMA code into a Hugging Face folder, or back.'
    )
    parser.add_argument(
        'file', type=Path, help='state dict, bare or under state -> model; with --to-legacy a Hugging Face folder'
    )
    parser.add_argument('--out', required=True, type=Path, help='folder to write; with --to-legacy a file')
    parser.add_argument('--to-legacy', action='store_true', help='the other direction, for plain models')
    parser.add_argument(
        '--head-dim', type=int, help='width of one attention head (128 for LLaMA-2); default: from --source'
    )
    parser.add_argument(
        '--source', help='folder of the LLaMA that was pruned: head dimension, rotary settings, tokenizer, licence'
    )
    parser.add_argument(
        '--target',
        **LIST,
        metavar='KEY=VALUE',
        help='shape to finish a pruning checkpoint at, e.g. num_hidden_layers=24 hidden_size=2048 '
        'num_attention_heads=16 intermediate_size=5504',
    )
    parser.add_argument('--rms-norm-eps', type=float, help="epsilon of the norms; default: the source's, or 1e-5")
    parser.add_argument('--tokenizer', help="folder to take the tokenizer from; default: the source's")
    parser.add_argument(
        '--dtype', default='same', choices=('same', 'float32', 'bfloat16', 'float16'), help='default: as in the file'
    )
    parser.add_argument(
        '--max-shard-size', type=size_argument, default='2GB', help='largest safetensors file, default 2GB'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace what exists')
    parser.add_argument('--quiet', dest='progress', action='store_false', help='no progress bar')
    return parser


def main(argv: list[str]) -> int:
    """Imports. Returns 0; errors of the user are raised as ValueError or FileNotFoundError."""
    args = _parser().parse_args(argv)
    local_destination('--out', args.out, 'file' if args.to_legacy else 'folder')
    target = parse_target(args.target or []) or None
    from llmshearing.compat.torch import DTYPES
    from llmshearing.export.legacy_import import ImportSettings, export_legacy, import_legacy

    if args.to_legacy:
        others = ('head_dim', 'source', 'target', 'rms_norm_eps', 'tokenizer')
        given = [name for name in others if getattr(args, name) is not None] + ['dtype'] * (args.dtype != 'same')
        if given:
            raise ValueError(f'--{given[0].replace("_", "-")} does nothing with --to-legacy; leave it out.')
        sys.stdout.write(f'{args.out}: {export_legacy(args.file, args.out, args.overwrite)} tensors\n')
        return 0
    settings = settings_from(
        ImportSettings, args, target=target, dtype=DTYPES.get(args.dtype), max_shard_bytes=args.max_shard_size
    )
    report = import_legacy(args.file, args.out, settings)
    sys.stdout.write(
        f'{args.out}: {report["parameters"]:,} parameters, {report["shape"]}\n'
        f'checked: {report["tensors_compared"]} tensors read back bit for bit\n'
    )
    return 0
