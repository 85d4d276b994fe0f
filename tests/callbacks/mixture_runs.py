"""A run on three small domains, and its metrics as arrays; fixtures are imported by the tests that use them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.dynamic_text_run import SIZES, metrics_of, read_down, tiny_trainer, weights_of
from tests.dynamic_text_world import write_domains


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp('domains'), SIZES)


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
    """An uninterrupted run with a checkpoint after every batch and every round."""
    place = tmp_path_factory.mktemp('whole')
    trainer = tiny_trainer(
        folder,
        written=place / 'batches',
        save_folder=str(place / 'batch'),
        save_interval='1ba',
        save_filename='ba{batch}.pt',
        save_num_checkpoints_to_keep=-1,
    )
    trainer.fit()
    return {
        'batches': read_down(place / 'batches'),
        'metrics': metrics_of(trainer),
        'weights': weights_of(trainer),
        'checkpoints': place / 'batch',
    }


def column(metrics, what):
    return np.array([metrics[f'mixture/{what}/{name}'] for name in SIZES]).T
