"""What an export takes over of its source: card, licence, tokenizer and settings, from the checkpoint or a folder."""

import dataclasses
import json
import shutil

import pytest
from llmfoundry.models.hf import ComposerHFCausalLM
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmshearing.export.job import export_checkpoint
from llmshearing.export.settings import ExportSettings
from tests.export import checkpoints
from tests.export.checkpoints import QUIET, progressive, pruning_checkpoint  # noqa: F401
from tests.tiny_run import tiny_source, tiny_tokenizer, tiny_trainer


def test_card_carries_source_licence_and_losses_on(progressive, tmp_path):
    checkpoint, _, _, _ = progressive
    metrics = tmp_path / 'metrics.jsonl'
    lines = [(3, 4.5), (6, 4.25), (9, 1.0)]  # the last one is after the checkpoint
    metrics.write_text(
        ''.join(json.dumps({'batch': b, 'metrics/eval/wiki/LanguageCrossEntropy': v}) + '\n' for b, v in lines)
    )
    export_checkpoint(checkpoint, tmp_path / 'out', ExportSettings(metrics=metrics, progress=False))
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert card.startswith('---\nlibrary_name: transformers\nlicense: llama2\nlanguage:\n- en\n')
    assert 'base_model: source\n' in card and 'under its licence: llama2' in card
    assert '| wiki | 4.2500 |' in card
    assert '| hidden_size | 48 | 36 |' in card
    assert '6 batches on 384 tokens' in card
    assert (tmp_path / 'out' / 'LICENSE').read_text() == 'Do what is right.\n'
    assert 'intermediate 64 to 40' in card and 'target' not in card
    assert 'Last evaluation of the masked model during the run, cross-entropy' in card
    metrics.write_text(metrics.read_text().splitlines()[0])
    export_checkpoint(checkpoint, tmp_path / 'earlier', ExportSettings(metrics=metrics, progress=False))
    card = (tmp_path / 'earlier' / 'README.md').read_text()
    assert 'during the run after 3 of 6 batches, cross-entropy per token.\n' in card and '| wiki | 4.5000 |' in card


def add_settings(source):
    """What people have in a source's folder besides weights and vocabulary."""
    settings = {'bos_token_id': 1, 'eos_token_id': [2, 17], 'pad_token_id': 0, 'do_sample': True, 'temperature': 0.6}
    (source / 'generation_config.json').write_text(json.dumps(settings))
    path = source / 'tokenizer_config.json'
    own = {'model_max_length': 77, 'chat_template': '{{ messages[0].content }}', 'auto_map': {'AutoTokenizer': 'x.Y'}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))


def test_what_the_source_has_travels_in_the_checkpoint(tmp_path, monkeypatch, caplog):
    stock = AutoTokenizer.from_pretrained

    def shortened(folder, **settings):
        return stock(folder, **settings, model_max_length=16)  # as a run's YAML does for its sequences

    monkeypatch.setattr(checkpoints.AutoTokenizer, 'from_pretrained', shortened)
    checkpoint, pruned, _, _ = pruning_checkpoint(tmp_path, add=add_settings)
    monkeypatch.undo()
    (tmp_path / 'source').rename(tmp_path / 'moved')  # or another machine
    export_checkpoint(checkpoint, tmp_path / 'out', QUIET)
    for folder in (tmp_path / 'out', pruned):
        generation = json.loads((folder / 'generation_config.json').read_text())
        assert (generation['eos_token_id'], generation['do_sample'], generation['temperature']) == ([2, 17], True, 0.6)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.model_max_length == 77 and 'auto_map' not in (folder / 'tokenizer_config.json').read_text()
        chat = [{'role': 'user', 'content': 'w3 w5'}]
        assert tokenizer.apply_chat_template(chat, tokenize=False) == 'w3 w5'
        assert tokenizer('w3 w17').input_ids == tiny_tokenizer()('w3 w17').input_ids
        card = (folder / 'README.md').read_text()
        assert 'license: llama2\n' in card and 'base_model: source\n' in card
        assert (folder / 'LICENSE').read_text() == 'Do what is right.\n'
    assert '--source' not in caplog.text


def test_every_chat_template_travels(tmp_path):
    templates = {'default': '{{ messages }}', 'rag': '{{ documents }}'}

    def add_templates(source):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = templates
        tokenizer.save_pretrained(source)

    checkpoint, pruned, _, _ = pruning_checkpoint(tmp_path, add=add_templates)
    (tmp_path / 'source').rename(tmp_path / 'moved')
    export_checkpoint(checkpoint, tmp_path / 'out', QUIET)
    for folder in (tmp_path / 'out', pruned):
        assert AutoTokenizer.from_pretrained(folder).chat_template == templates


def test_what_a_named_source_lacks_is_as_the_run_noted_it(tmp_path):
    checkpoint, _, _, _ = pruning_checkpoint(tmp_path, add=add_settings)
    (tmp_path / 'bare').mkdir()
    shutil.copy(tmp_path / 'source' / 'config.json', tmp_path / 'bare')
    (tmp_path / 'bare' / 'LICENSE').write_text('Another.\n')
    (tmp_path / 'source').rename(tmp_path / 'moved')
    export_checkpoint(checkpoint, tmp_path / 'out', dataclasses.replace(QUIET, source=str(tmp_path / 'bare')))
    assert json.loads((tmp_path / 'out' / 'generation_config.json').read_text())['eos_token_id'] == [2, 17]
    assert 'license: llama2\n' in (tmp_path / 'out' / 'README.md').read_text()
    assert (tmp_path / 'out' / 'LICENSE').read_text() == 'Another.\n'


def test_a_source_of_another_type_is_refused(progressive, tmp_path):
    (tmp_path / 'config.json').write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match='--source .* is a qwen3, and .* of a llama; name the model that its training'):
        export_checkpoint(progressive[0], tmp_path / 'out', dataclasses.replace(QUIET, source=str(tmp_path)))


def test_a_tokenizer_of_other_ids_is_refused(progressive, tmp_path):
    own = tiny_tokenizer()

    def with_tokenizer(name, tokenizer):
        tokenizer.save_pretrained(tmp_path / name)
        return dataclasses.replace(QUIET, tokenizer=str(tmp_path / name))

    def changed(change):
        content = json.loads(own.backend_tokenizer.to_str())
        change(content['model']['vocab'])
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))

    def swap(vocabulary):
        vocabulary['w3'], vocabulary['w4'] = vocabulary['w4'], vocabulary['w3']

    for name, tokenizer, words in (
        ('more', changed(lambda vocabulary: vocabulary.update(new=4000)), 'has ids up to 4000, and the embedding'),
        ('swapped', changed(swap), "is not the tokenizer that this model was trained with: 'w[34]' has another id"),
    ):
        with pytest.raises(ValueError, match=words):
            export_checkpoint(progressive[0], tmp_path / 'out', with_tokenizer(name, tokenizer))
    assert not (tmp_path / 'out').exists()
    export_checkpoint(progressive[0], tmp_path / 'out', with_tokenizer('same', own))


def test_continued_pretraining_carries_on_what_the_pruned_folder_says_of_its_source(tmp_path, caplog):
    pruned = tiny_source(tmp_path / 'pruned')
    (pruned / 'README.md').write_text(
        '---\nlibrary_name: transformers\nlicense: llama2\ntags: [llmshearing]\nbase_model: org/big\n---\n'
    )
    (pruned / 'LICENSE').write_text('Do what is right.\n')
    model = ComposerHFCausalLM(
        tokenizer=tiny_tokenizer(), pretrained_model_name_or_path=str(pruned), use_train_metrics=False
    )
    trainer = tiny_trainer(
        pruned, [], batches=1, model=model, save_folder=str(tmp_path / 'saved'), save_filename='last.pt'
    )
    trainer.fit()
    trainer.close()

    def exported(name, source):
        settings = ExportSettings(source=source and str(source), progress=False)
        export_checkpoint(tmp_path / 'saved' / 'last.pt', tmp_path / name, settings)
        return (tmp_path / name / 'README.md').read_text()

    card = exported('of_ours', pruned)
    assert 'license: llama2\n' in card and 'base_model: org/big\n' in card
    assert 'Derived from org/big and under its licence: llama2.' in card
    assert (tmp_path / 'of_ours' / 'LICENSE').read_text() == 'Do what is right.\n'
    assert '--source' not in caplog.text
    (pruned / 'README.md').write_text('---\nbase_model: org/other\n---\n')  # not ours: the model itself is the source
    assert 'base_model: pruned\n' in exported('of_others', pruned)
    card = exported('of_nobody', None)
    assert 'base_model' not in card and 'Which one that was did not stand in the checkpoint' in card
    assert '--source FOLDER names it' in caplog.text
