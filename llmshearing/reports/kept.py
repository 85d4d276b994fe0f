"""Which units stay, from a pruning record: matrices for heat maps and lists a person can read.

The record is what ``export_pruned`` writes as ``pruning.json``; during a run the ``run_report`` callback notes the
same, plus ``keep_probability`` by axis. With probabilities a map shows how decided every mask is; without them, what
was kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BINS = 64  # runs of intermediate units whose mean is kept per layer: 11,008 columns would not be seen
# Part of a layer in the record: (axis of its mask, size of the source)
PARTS = {
    'kv_heads': ('kv_group', 'num_key_value_heads'),
    'heads': ('head', 'num_attention_heads'),
    'intermediate': ('intermediate', 'intermediate_size'),
}
PART_NAMES = {'kv_heads': 'KV heads', 'heads': 'heads', 'intermediate': 'intermediate'}


def binned(values: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Means of ``bins`` nearly equal runs of columns, [rows, columns] to [rows, min(bins, columns)]."""
    return np.stack([part.mean(axis=1) for part in np.array_split(values, min(bins, values.shape[1]), axis=1)], axis=1)


def ranges(indices: Iterable[int]) -> str:
    """Numbers as a person writes them: ``0-4, 7, 9-10``."""
    indices = sorted(indices)
    parts = []
    start = 0
    for i, index in enumerate(indices):
        if i + 1 == len(indices) or indices[i + 1] != index + 1:
            parts.append(f'{indices[start]}' if start == i else f'{indices[start]}-{index}')
            start = i + 1
    return ', '.join(parts) or 'none'


def kept_layers(record: Mapping[str, Any]) -> list[int]:
    """Numbers of the kept layers, as in the source."""
    return sorted(map(int, record['kept']['layers']))


def kept_part(record: Mapping[str, Any], layer: int, part: str) -> list[int]:
    """Kept units of one part (a key of :data:`PARTS`) of a kept layer, numbered as in the source."""
    kept = record['kept']['layers'][str(layer)][part]
    return list(range(record['source_shape'][PARTS[part][1]])) if kept is None else kept


def kept_hidden(record: Mapping[str, Any]) -> list[int]:
    """Kept hidden dimensions."""
    kept = record['kept']['hidden']
    return list(range(record['source_shape']['hidden_size'])) if kept is None else kept


def kept_matrix(record: Mapping[str, Any], part: str) -> np.ndarray:
    """1 for kept and 0 for removed units of one part, [layers, units]; all 0 in a removed layer."""
    matrix = np.zeros((record['source_shape']['num_hidden_layers'], record['source_shape'][PARTS[part][1]]))
    for layer in kept_layers(record):
        matrix[layer, kept_part(record, layer, part)] = 1
    return matrix


def pruned_parts(record: Mapping[str, Any]) -> list[str]:
    """Parts of a layer that have masks of their own, or lose units with those that have."""
    axes = {axis['axis'] for axis in record['axes']}
    return [part for part, (axis, _) in PARTS.items() if axis in axes or (part == 'heads' and 'kv_group' in axes)]


def part_map(record: Mapping[str, Any], part: str) -> np.ndarray:
    """What a heat map shows of one part, [layers, units or bins], from 0 to 1.

    The probability that a unit is kept, where the record has it; else whether it is. Layers that go are not a number
    where only the kept units are known, because nothing is known of their units then.
    """
    probability = record.get('keep_probability', {})
    axis = PARTS[part][0]
    if axis in probability:
        values = np.array(probability[axis], dtype=np.float64)
        return values.reshape(record['source_shape']['num_hidden_layers'], -1)
    if part == 'heads' and 'kv_group' in probability:
        groups = np.array(probability['kv_group'], dtype=np.float64)
        return np.repeat(groups, record['source_shape']['num_attention_heads'] // groups.shape[1], axis=1)
    values = kept_matrix(record, part)
    values[[layer for layer in range(len(values)) if layer not in set(kept_layers(record))]] = np.nan
    return binned(values) if part == 'intermediate' else values


def layer_map(record: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
    """The masks of all layers at a glance.

    Returns:
        tuple: Values [layers, columns] from 0 to 1 and the columns' names: the layer itself, and the mean over the
        units of each part that is pruned.
    """
    layers = record['source_shape']['num_hidden_layers']
    probability = record.get('keep_probability', {})
    whole = np.array(probability['layer']) if 'layer' in probability else np.isin(range(layers), kept_layers(record))
    parts = pruned_parts(record)
    columns = [whole.astype(np.float64), *(part_map(record, part).mean(axis=1) for part in parts)]
    return np.stack(columns, axis=1), ['layer', *(PART_NAMES[part] for part in parts)]


def hidden_map(record: Mapping[str, Any]) -> np.ndarray:
    """The hidden dimensions row by row, [rows, 32, 64 or 128]; not a number behind the last one."""
    size = record['source_shape']['hidden_size']
    values = np.zeros(size)
    values[kept_hidden(record)] = 1
    values = np.array(record.get('keep_probability', {}).get('hidden', values), dtype=np.float64)
    width = 32 if size <= 1024 else 64 if size <= 2048 else 128
    padded = np.full(-(-size // width) * width, np.nan)
    padded[:size] = values
    return padded.reshape(-1, width)
