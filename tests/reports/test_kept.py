"""From a pruning record to what a person sees of it."""

from __future__ import annotations

import numpy as np
import pytest

from llmshearing.reports.kept import (
    binned,
    hidden_map,
    kept_matrix,
    layer_map,
    part_map,
    pruned_parts,
    ranges,
    removed_layers,
)
from tests.metrics.logs import pruning_record


@pytest.mark.parametrize(
    'indices, text',
    [
        ([], 'none'),
        ([3], '3'),
        ([0, 1, 2], '0-2'),
        ([5, 0, 1, 3], '0-1, 3, 5'),
        ([0, 2, 4], '0, 2, 4'),
        ([7, 8, 1], '1, 7-8'),
    ],
)
def test_ranges(indices, text):
    assert ranges(indices) == text


def test_bins_are_means():
    values = np.arange(130.0)[None]
    assert binned(values)[0] == pytest.approx([1, 4, *np.arange(6.5, 130, 2)])  # 64 runs, the first two of three
    assert binned(values[:, :9]) == pytest.approx(values[:, :9])


def test_maps_of_an_exported_record():
    record = pruning_record()
    assert pruned_parts(record) == ['kv_heads', 'heads', 'intermediate']
    assert kept_matrix(record, 'heads')[3].tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert kept_matrix(record, 'heads').sum(axis=1).tolist() == [4, 4, 0, 4, 0, 4]
    heads = part_map(record, 'heads')
    assert np.isnan(heads[2]).all() and np.isnan(heads[4]).all()  # layers that went
    values, columns = layer_map(record)
    assert columns == ['layer', 'KV heads', 'heads', 'intermediate']
    assert values[:, 0].tolist() == [1, 1, 0, 1, 0, 1]
    assert values[0, 1:] == pytest.approx([0.5, 0.5, 0.6], abs=0.02)
    hidden = hidden_map(record)
    assert hidden.shape == (3, 32) and hidden[:2].min() == 1 and hidden[2].max() == 0


def test_maps_of_a_running_run_show_its_masks():
    record = pruning_record(live=True)
    assert part_map(record, 'kv_heads')[2].tolist() == [0.9, 0.1, 0.2, 0.8]
    assert part_map(record, 'heads')[0].tolist() == [0.9, 0.9, 0.1, 0.1, 0.2, 0.2, 0.8, 0.8]  # with their KV heads
    assert part_map(record, 'intermediate').shape == (6, 64)
    assert layer_map(record)[0][2] == pytest.approx([0, 0.5, 0.5, 0.6])
    assert hidden_map(record)[0, 0] == 0.9 and hidden_map(record)[2, 31] == 0.1


def test_parts_that_are_kept_whole():
    record = pruning_record()
    record['kept'] = {
        'hidden': None,
        'layers': {str(i): {'heads': None, 'kv_heads': None, 'intermediate': None} for i in range(6)},
    }
    assert kept_matrix(record, 'intermediate').all() and hidden_map(record).min() == 1


def test_layers_are_removed_when_that_is_decided_or_nearly():
    record = pruning_record(live=True)
    record['mask_values']['layer'] = [1, 0.9, 0.7, 1, 0.2, 1]
    assert removed_layers(record) == [4] and removed_layers(record, decided=True) == [2, 4]
    del record['mask_values']
    assert removed_layers(record) == [2, 4]
