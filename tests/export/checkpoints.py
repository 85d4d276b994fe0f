"""Tiny checkpoints of both stages for the tests of export; fixtures are imported by the tests that use them."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.export.settings import ExportSettings
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.tiny_run import tiny_source, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
CARD = '---\nlicense: llama2\nlanguage:\n- en\n---\n# A source\n'
QUIET = ExportSettings(progress=False)


def pruning_checkpoint(
    work: Path, mask_learning: str = 'progressive', variant: str = 'llama', pruning=None, add=None, **trainer_settings
):
    """Prunes for a few batches; returns (checkpoint, folder that the callback wrote, trainer, algorithm)."""
    source = tiny_source(work / 'source', variant)
    (source / 'README.md').write_text(CARD)
    (source / 'LICENSE').write_text('Do what is right.\n')
    if add is not None:  # further files of the source
        add(source)
    pruning = pruning or TargetedPruning(TARGET, mask_learning=mask_learning, warmup='0.5dur')
    trainer = tiny_trainer(
        source,
        [pruning],
        batches=6,
        model=ShearedCausalLM(AutoTokenizer.from_pretrained(source), str(source)),
        callbacks=[ExportPruned(str(work / 'pruned'), allow_unconverged=True)],
        save_folder=str(work / 'checkpoints'),
        save_filename='ba{batch}.pt',
        save_interval='6ba',
        **trainer_settings,
    )
    trainer.fit()
    trainer.close()
    return work / 'checkpoints' / 'ba6.pt', work / 'pruned', trainer, pruning


@pytest.fixture(scope='module')
def progressive(tmp_path_factory):
    return pruning_checkpoint(tmp_path_factory.mktemp('progressive'))


@pytest.fixture(scope='module')
def lagrangian(tmp_path_factory):
    return pruning_checkpoint(tmp_path_factory.mktemp('lagrangian'), 'lagrangian')


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
