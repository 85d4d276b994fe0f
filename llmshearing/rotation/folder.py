"""The files of a rotated folder beside its weights: config, tokenizer, card, licence, what was done, a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from llmshearing.rotation.borrowed import BLUE, DPI, GREY, ORANGE, TAG, copy_licence_files, figure_of, source_licence
from llmshearing.rotation.energy import energy_table, table_widths

__all__ = ['PICTURE', 'RECORD', 'copy_companions', 'plot_energy', 'write_card', 'write_config']

RECORD, PICTURE = 'rotation.json', 'energy_kept.png'
# Companions are copied as they are: byte for byte what the source has. No code is.
COMPANIONS = (
    'tokenizer*',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.*',
    'merges.txt',
    '*.model',
    'chat_template*',
    'generation_config.json',
)
NO_COMPANIONS = ('.py', '.safetensors', '.bin', '.pt', '.gguf')


def copy_companions(source: Path, folder: Path) -> list[str]:
    """Copies tokenizer, generation config and licence files unchanged; returns their names."""
    names = {
        path.name
        for pattern in COMPANIONS
        for path in source.glob(pattern)
        if path.is_file() and path.suffix not in NO_COMPANIONS
    }
    for name in sorted(names):
        shutil.copyfile(source / name, folder / name)
    return sorted(names) + copy_licence_files(source, folder)


def write_config(settings: dict[str, Any], tied: bool, dtype: torch.dtype, folder: Path) -> None:
    """The source's ``config.json`` with nothing changed but what the rotation changes."""
    settings = {**settings, 'torch_dtype': str(dtype).removeprefix('torch.'), 'tie_word_embeddings': tied}
    settings.pop('auto_map', None)  # leads to code
    (folder / 'config.json').write_text(json.dumps(settings, indent=2) + '\n', encoding='utf-8')


def plot_energy(kept: Tensor, target: int | None, path: Path) -> None:
    """Energy kept against hidden size: mean of the norms, range of the norms, the final norm.

    Args:
        kept (Tensor): :func:`~llmshearing.rotation.energy.energy_kept`, [reading norms, hidden].
        target (int | None): Hidden size to mark.
        path (Path): PNG to write.
    """
    figure, axes = figure_of(1, 1, 6.4, 4.0)
    axis = axes[0, 0]
    widths = torch.arange(1, kept.shape[1] + 1)
    axis.fill_between(widths, 100 * kept.amin(0), 100 * kept.amax(0), color='#DCE9F4', label='range of the norms')
    axis.plot(widths, 100 * kept.mean(0), color=BLUE, label='mean of the norms')
    axis.plot(widths, 100 * kept[-1], color=ORANGE, linestyle='--', label='final norm')
    if target is not None:
        share = 100 * kept[:, target - 1].mean().item()
        axis.axvline(target, color=GREY, linestyle=':', label=f'{target}: {share:.1f} %')
    axis.set_xlabel('hidden_size kept')
    axis.set_ylabel('energy kept (%)')
    axis.set_xlim(0, kept.shape[1])
    axis.set_ylim(0, 101)
    axis.legend(frameon=False, loc='lower right')
    figure.savefig(path, dpi=DPI, metadata={'Software': None})  # the same bytes with any matplotlib of this version


def write_card(source: Path, name: str, record: dict[str, Any], kept: Tensor, folder: Path) -> None:
    """``README.md``: derived from what, how, under which licence, what was checked, and the table."""
    licence = source_licence(source)
    head = {'library_name': 'transformers', **licence, 'tags': ['rotated', TAG], 'base_model': record['source']}
    tied = record['tied']
    if tied:
        ends = (
            f'The LM head is still the embedding: {len(record["fixed_axes"])} axes with odd gains in the final '
            'norm stay axes of their own, all others share one gain there.'
        )
    else:
        ends = 'The LM head has weights of its own' + (', which the source had not.' if record['untied'] else '.')
    basis = (
        f'a subspace of {record["keep"]} dimensions learned in {record["learned"]["steps"]} steps with all '
        'weights frozen, completed by principal directions'
        if record['learned']
        else 'the principal directions of the normalised residual stream, by falling energy'
    )
    losses, terms = record['loss'], licence.get('license')
    parts = [
        f'---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---',
        f'# {name}',
        f'{record["source"]} in another basis of its residual stream: {basis}. It is the same model, of the same shape '
        f'and size, and computes the same function; what differs is which hidden dimensions can be cut at little cost: '
        f'the last ones. {ends}',
        f'Made with `llmshearing rotate` from {record["tokens"]:,} tokens of {record["data"]}; the settings are in '
        f'`{RECORD}`.',
        '## Checked\n\n'
        f"- largest difference of a logit from the source's"
        f'{", its final norm with the common gain," if tied else ""} on a sample, computed in '
        f'{record["checked_in"]}: {record["largest_logit_difference"]:.2g}\n'
        f'- loss on held-out text: source {losses["source"]:.4f}, this model {losses["rotated"]:.4f} nats per token',
        f'## Energy kept\n\n![energy kept against hidden size]({PICTURE})\n\n'
        f'{energy_table(kept, table_widths(kept.shape[1]))}',
        '## Licence\n\nDerived from the source model and under its licence'
        f'{f": {terms}" if terms else ", which was not found beside it; look it up before you share this model"}.',
    ]
    (folder / 'README.md').write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
