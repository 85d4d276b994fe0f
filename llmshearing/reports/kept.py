"""Which units stay, from a pruning record: matrices for heat maps and lists a person can read.

The record is what ``export_pruned`` writes as ``pruning.json``; during a run the ``run_report`` callback notes the
same, plus ``mask_values`` by axis. With them a map shows how decided every mask is; without them, what was kept. What
a value means depends on how masks are learned (:func:`meaning`): only in the Lagrangian way it is a probability.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = [
    'PART_NAMES',
    'binned',
    'hidden_map',
    'kept_hidden',
    'kept_layers',
    'kept_matrix',
    'kept_part',
    'layer_map',
    'meaning',
    'part_map',
    'pruned_parts',
    'ranges',
    'removed_layers',
]

BINS = 64  # runs of intermediate units whose mean is kept per layer: 11,008 columns would not be seen
# Part of a layer in the record: (axis of its mask, size of the source)
PARTS = {
    'kv_heads': ('kv_group', 'num_key_value_heads'),
    'heads': ('head', 'num_attention_heads'),
    'intermediate': ('intermediate', 'intermediate_size'),
    'experts': ('expert', 'num_experts'),
}
PART_NAMES = {'kv_heads': 'KV heads', 'heads': 'heads', 'intermediate': 'intermediate', 'experts': 'experts'}


def binned(values: np.ndarray) -> np.ndarray:
    """Means of nearly equal runs of columns, [rows, columns] to [rows, min(BINS, columns)]."""
    return np.stack([part.mean(axis=1) for part in np.array_split(values, min(BINS, values.shape[1]), axis=1)], axis=1)


def ranges(indices: Iterable[int]) -> str:
    """Numbers as a person writes them: ``0-4, 7, 9-10``."""
    ordered = np.array(sorted(indices))
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
    return ', '.join(f'{run[0]}-{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs if len(run)) or 'none'


def kept_layers(record: Mapping[str, Any]) -> list[int]:
    """Numbers of the kept layers, as in the source."""
    return sorted(map(int, record['kept']['layers']))


def kept_part(record: Mapping[str, Any], layer: int, part: str) -> list[int]:
    """Kept units of one part (a key of :data:`PARTS`) of a kept layer, numbered as in the source."""
    kept = record['kept']['layers'][str(layer)].get(part)
    size, experts = record['source_shape'][PARTS[part][1]], record['source_shape'].get('num_experts')
    if part != 'intermediate' or not experts:
        return list(range(size)) if kept is None else kept
    left = kept_part(record, layer, 'experts')  # each with dimensions of its own, numbered one expert after the other
    return [expert * size + unit for expert, units in zip(left, kept or [range(size)] * len(left)) for unit in units]


def kept_hidden(record: Mapping[str, Any]) -> list[int]:
    """Kept hidden dimensions."""
    kept = record['kept']['hidden']
    return list(range(record['source_shape']['hidden_size'])) if kept is None else kept


def kept_matrix(record: Mapping[str, Any], part: str) -> np.ndarray:
    """1 for kept and 0 for removed units of one part, [layers, units]; all 0 in a removed layer."""
    shape = record['source_shape']
    units = shape[PARTS[part][1]] * (shape.get('num_experts', 1) if part == 'intermediate' else 1)
    matrix = np.zeros((shape['num_hidden_layers'], units))
    for layer in kept_layers(record):
        matrix[layer, kept_part(record, layer, part)] = 1
    return matrix


def pruned_parts(record: Mapping[str, Any]) -> list[str]:
    """Parts of a layer that have masks of their own, or lose units with those that have."""
    axes = {axis['axis'] for axis in record['axes']}
    return [part for part, (axis, _) in PARTS.items() if axis in axes or (part == 'heads' and 'kv_group' in axes)]


def removed_layers(record: Mapping[str, Any], decided: bool = False) -> list[int]:
    """Numbers of the layers that go, as in the source; until that is decided, those whose masks are nearly closed."""
    layers = record['source_shape']['num_hidden_layers']
    now = record.get('mask_values', {}).get('layer', [0] * layers)
    return [layer for layer in range(layers) if layer not in kept_layers(record) and (decided or now[layer] < 0.5)]


def meaning(record: Mapping[str, Any]) -> str:
    """What the values of a map are, in words."""
    if 'mask_values' not in record:
        return 'kept in the exported model'
    return 'P(z > 0), the probability of being kept' if record.get('mask_learning') == 'lagrangian' else 'the mask'


def part_map(record: Mapping[str, Any], part: str) -> np.ndarray:
    """What a heat map shows of one part, [layers, units or bins], from 0 to 1.

    The mask of each unit, where the record has it; else whether it is kept. Not a number in layers that go where only
    the kept units are known, because nothing is known of their units then.
    """
    values = record.get('mask_values', {})
    axis = PARTS[part][0]
    if axis in values:
        return np.array(values[axis], dtype=np.float64).reshape(record['source_shape']['num_hidden_layers'], -1)
    if part == 'heads' and 'kv_group' in values:
        groups = np.array(values['kv_group'], dtype=np.float64)
        return np.repeat(groups, record['source_shape']['num_attention_heads'] // groups.shape[1], axis=1)
    matrix = kept_matrix(record, part)
    matrix[removed_layers(record)] = np.nan
    return binned(matrix) if part == 'intermediate' else matrix


def layer_map(record: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
    """The masks of all layers at a glance.

    Returns:
        tuple: Values [layers, columns] from 0 to 1 and the columns' names: the layer itself, and the mean over the
        units of each part that is pruned.
    """
    values = record.get('mask_values', {})
    layers = range(record['source_shape']['num_hidden_layers'])
    whole = np.array(values['layer']) if 'layer' in values else np.isin(layers, kept_layers(record))
    parts = pruned_parts(record)
    columns = [whole.astype(np.float64), *(part_map(record, part).mean(axis=1) for part in parts)]
    return np.stack(columns, axis=1), ['layer', *(PART_NAMES[part] for part in parts)]


def hidden_map(record: Mapping[str, Any]) -> np.ndarray:
    """The hidden dimensions row by row, [rows, 32, 64 or 128]; not a number behind the last one."""
    size = record['source_shape']['hidden_size']
    values = np.isin(np.arange(size), kept_hidden(record))
    values = np.array(record.get('mask_values', {}).get('hidden', values), dtype=np.float64)
    width = 32 if size <= 1024 else 64 if size <= 2048 else 128
    padded = np.full(-(-size // width) * width, np.nan)
    padded[:size] = values
    return padded.reshape(-1, width)
