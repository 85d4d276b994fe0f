"""The folders of llm-foundry's hf_checkpointer get a card and the licence of what training began with."""

import json
from types import SimpleNamespace

import pytest
import yaml
from composer.core import Evaluator, Timestamp
from llmfoundry.callbacks.hf_checkpointer import HuggingFaceCheckpointer

from llmshearing.callbacks.model_card import ModelCard
from llmshearing.export.job import export_checkpoint
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.settings import ExportSettings
from llmshearing.metrics.logger import MetricsFile
from tests.tiny_run import sequences_spec, tiny_source, tiny_trainer

LICENCE = 'Do with it as you like.\n'


@pytest.fixture
def source(tmp_path):
    folder = tiny_source(tmp_path / 'source')
    (folder / 'LICENSE').write_text(LICENCE)
    return folder


def test_resumed_after_its_last_evaluation_a_run_tells_the_losses_that_it_logged(tmp_path):
    file = MetricsFile(str(tmp_path / 'metrics.jsonl'))
    for batch, loss in ((2, 4.5), (4, 4.25), (6, 4.0)):
        file.log_metrics({'metrics/eval/held_out/LanguageCrossEntropy': loss, 'loss/train/total': 5.0}, batch)
    card, logger = ModelCard(), SimpleNamespace(destinations=[file])
    card.after_load(SimpleNamespace(timestamp=Timestamp(batch=5), eval_metrics={}), logger)
    assert (card._losses, card._losses_at) == ({'held_out': 4.25}, 4)
    fresh = ModelCard()
    fresh.after_load(SimpleNamespace(timestamp=Timestamp(), eval_metrics={}), logger)
    assert fresh._losses == {}


def continued(source, work, card):
    evaluator = Evaluator(
        label='eval/held_out', dataloader=sequences_spec(8, 4, seed=1), metric_names=['LanguageCrossEntropy']
    )
    saver = HuggingFaceCheckpointer(str(work), '1dur', huggingface_folder_name='final')
    trainer = tiny_trainer(
        source,
        [],
        batches=3,
        callbacks=[saver, card],
        eval_dataloader=evaluator,
        eval_interval='3ba',
        save_folder=str(work / 'save'),
        save_filename='ba{batch}.pt',
    )
    trainer.fit()
    loss = float(trainer.state.eval_metrics['eval/held_out']['LanguageCrossEntropy'].compute())
    trainer.close()
    return work / 'huggingface' / 'final', loss


@pytest.mark.parametrize('tags, base_model', [(['text'], 'source'), (['llmshearing'], 'org/large')])
def test_the_card_names_the_source_and_its_licence(source, tmp_path, tags, base_model):
    head = {'license': 'other', 'license_name': 'free', 'tags': tags, 'base_model': 'org/large'}
    (source / 'README.md').write_text(f'---\n{yaml.safe_dump(head)}---\n\n# The source\n')
    folder, loss = continued(source, tmp_path, ModelCard())
    _, front, text = (folder / 'README.md').read_text().split('---\n', 2)
    assert yaml.safe_load(front) == {
        'library_name': 'transformers',
        'license': 'other',
        'license_name': 'free',
        'tags': ['structured-pruning', 'llmshearing'],
        'base_model': base_model,
    }
    parameters = sum(parameter.numel() for parameter in open_strictly(folder).parameters())
    assert f'# {base_model.split("/")[-1]} with {parameters:,} parameters' in text
    assert f'| parameters | {parameters:,} |' in text
    assert 'Trained for 3 batches on' in text and f'| held_out | {loss:.4f} |' in text
    assert (folder / 'LICENSE').read_text() == LICENCE
    # A checkpoint of the run knows where both are, too.
    export_checkpoint(tmp_path / 'save' / 'ba3.pt', tmp_path / 'out', ExportSettings(progress=False))
    assert yaml.safe_load((tmp_path / 'out' / 'README.md').read_text().split('---\n')[1])['base_model'] == base_model
    assert (tmp_path / 'out' / 'LICENSE').read_text() == LICENCE


def test_what_cannot_have_a_card_is_refused_before_the_first_step(source, tmp_path):
    with pytest.raises(ValueError, match='add that callback, or remove this one. For pruning remove it'):
        tiny_trainer(source, [], callbacks=[ModelCard()])
    (source / 'README.md').write_text('---\nlicense: [\n---\n')
    with pytest.raises(ValueError, match='is not YAML'):
        continued(source, tmp_path, ModelCard())


def test_the_folder_is_for_either_generation_of_transformers(source, tmp_path):
    folder, _ = continued(source, tmp_path, ModelCard())
    config = json.loads((folder / 'config.json').read_text())
    assert config['rope_theta'] == 10000.0 and config['torch_dtype'] == 'float32'
    settings = json.loads((folder / 'tokenizer_config.json').read_text())
    assert settings['tokenizer_class'].startswith('PreTrainedTokenizer') and 'backend' not in settings
