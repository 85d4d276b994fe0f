"""The files of a rotated folder beside its weights: config, tokenizer, card, licence, what was done, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmshearing.checkpoints.rotated import RECORD
from llmshearing.compat.configs import dump_config
from llmshearing.export.model_card import derived_card
from llmshearing.models.source_files import read_source_files, source_licence
from llmshearing.reports.lines import Line, line_panel
from llmshearing.reports.svg import BLUE, GREY, ORANGE, SKY, as_file
from llmshearing.rotation.energy import energy_table
from llmshearing.utils.files import write_atomically

__all__ = ['PICTURE', 'plot_energy', 'write_card', 'write_config']

PICTURE = 'energy_kept.svg'


def write_config(settings: dict[str, Any], tied: bool, dtype: torch.dtype, folder: Path) -> None:
    """The source's ``config.json``, in the words of both generations, changed only where the rotation changes it."""
    key = 'dtype' if 'dtype' in settings else 'torch_dtype'  # of transformers 5, and before
    settings = {**settings, key: str(dtype).removeprefix('torch.'), 'tie_word_embeddings': tied}
    if 'tie_embedding' in settings:  # the first configs of LFM2, where transformers takes it before the other
        settings['tie_embedding'] = tied
    settings.pop('auto_map', None)  # leads to code
    dump_config(settings, folder / 'config.json')


def plot_energy(kept: Tensor, target: int | None, path: Path) -> None:
    """Energy kept against hidden size: mean of the norms, range of the norms, the final norm.

    Args:
        kept (Tensor): :func:`~llmshearing.rotation.energy.energy_kept`, [reading norms, hidden].
        target (int | None): Hidden size to mark.
        path (Path): SVG to write.
    """
    widths, percent = np.arange(1, kept.shape[1] + 1), 100 * kept.double().numpy()
    lines = [
        Line('least of the norms', widths, percent.min(0), SKY, '-.'),
        Line('most of the norms', widths, percent.max(0), SKY, '--'),
        Line('mean of the norms', widths, percent.mean(0), BLUE, width=2.6),
        Line('final norm', widths, percent[-1], ORANGE, '--'),
    ]
    if target is not None:
        share = percent[:, target - 1].mean()
        lines.append(Line(f'{target}: {share:.1f} %', np.array([target, target]), np.array([0.0, 100.0]), GREY, ':'))
    panel = line_panel('energy kept', lines, '%', from_zero=True, x_label='hidden_size kept')
    write_atomically(path, as_file(panel))


def write_card(source: Path, name: str, record: dict[str, Any], kept: Tensor, folder: Path) -> None:
    """``README.md``: derived from what, how, under which licence, what was checked, and the table."""
    licence = source_licence(read_source_files(str(source)))
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
    losses = record['loss']
    parts = [
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
        f'## Energy kept\n\n![energy kept against hidden size]({PICTURE})\n\n{energy_table(kept)}',
    ]
    card = derived_card(licence, 'rotated', record['source'], name, *parts)
    (folder / 'README.md').write_text(card, encoding='utf-8')
