"""What a run file needs to know of prepared data, read from its manifest: domains, sizes, and the sequence length."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from llmshearing.data.stored_teacher import check_same_teacher, read_note
from llmshearing.prepare.manifest import MANIFEST, read_manifest
from llmshearing.recipes.rules import TOKENS_OPTION

__all__ = ['PreparedData', 'count_passes', 'read_data']

SPLITS = ('prune', 'continue', 'eval')


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Prepared data: where they are, the tokens of a sequence, and sequences by split and domain."""

    folder: str
    max_seq_len: int
    samples: Mapping[str, Mapping[str, int]]

    @property
    def domains(self) -> list[str]:
        """Names, in the manifest's order."""
        return list(self.samples['prune'])

    def tokens(self, split: str) -> int:
        """Tokens of one pass over a split."""
        return sum(self.samples[split].values()) * self.max_seq_len

    def stored_teacher(self) -> str | None:
        """Name of the model whose predictions stand beside the tokens to train on; None where none do.

        Raises:
            ValueError: If they stand beside some of them alone, or are of several models.
        """
        folders = [(split, name) for split in SPLITS if split != 'eval' for name in self.domains]
        notes = {'/'.join(parts): read_note(Path(self.folder, *parts)) for parts in folders}
        return next(iter(check_same_teacher(notes).values())).teacher if any(notes.values()) else None

    def proportions(self, split: str) -> dict[str, float]:
        """Share of each domain in a split, to four digits."""
        whole = sum(self.samples[split].values())
        return {name: float(f'{count / whole:.4g}') for name, count in self.samples[split].items()}


def read_data(folder: str) -> PreparedData:
    """Reads the manifest.

    Raises:
        ValueError: If there is none, it is unfinished, or a domain lacks one of the splits.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f'--data {folder}: no {MANIFEST} there; give a folder that `llmshearing prepare` wrote.')
    manifest = read_manifest(path)
    length = manifest.get('max_seq_len')
    if manifest.get('unfinished') or not manifest['domains']:
        raise ValueError(f'--data {folder}: it is unfinished or holds no domain; run `llmshearing prepare` again.')
    if not isinstance(length, int) or length < 1:
        raise ValueError(f'--data {folder}: its {MANIFEST} has no max_seq_len; run `llmshearing prepare` again.')
    samples: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for name, entry in manifest['domains'].items():
        for split in SPLITS:
            count = entry['splits'].get(split, {}).get('samples', 0)
            if not count:
                raise ValueError(
                    f'--data {folder}: the domain {name!r} has no samples in the split {split!r}; a run needs '
                    f'{", ".join(SPLITS)} of every domain, so prepare them.'
                )
            samples[split][name] = count
    return PreparedData(folder, length, samples)


def count_passes(data: PreparedData, split: str, samples: int, max_passes: float) -> float:
    """Passes over the split that a run of ``samples`` takes at the split's own proportions.

    Raises:
        ValueError: If they are more than ``max_passes``.
    """
    passes = samples / sum(data.samples[split].values())
    if not passes <= max_passes:  # nor what is no number
        raise ValueError(
            f'{TOKENS_OPTION[split]}: {samples * data.max_seq_len:,} tokens take {passes:.1f} passes over the '
            f'{data.tokens(split):,} of {data.folder}/{split}, more than --max-passes {max_passes:g}; give fewer '
            'tokens, prepare more data, or allow more passes.'
        )
    return passes
