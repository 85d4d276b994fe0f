"""Export from checkpoints: the same folder as the callback writes, for each stage and mask choice;
nothing else is let through."""

import dataclasses
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from llmfoundry.models.hf import ComposerHFCausalLM
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.cli import main
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.export import pruned_folder
from llmshearing.export.job import export_checkpoint
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.settings import ExportSettings
from llmshearing.export.verification import verify_tensors
from llmshearing.metrics.pruning_record import read_record
from llmshearing.models.shapes import shape_of
from tests.export import checkpoints
from tests.export.checkpoints import TARGET, pruning_checkpoint
from tests.tiny_run import sequences_spec, tiny_source, tiny_tokenizer, tiny_trainer

QUIET = ExportSettings(progress=False)
ONE_SHOT = {'mask_learning': 'one_shot', 'scores': 'magnitude'}


@pytest.fixture(scope='module')
def progressive(tmp_path_factory):
    return pruning_checkpoint(tmp_path_factory.mktemp('progressive'))


@pytest.fixture(scope='module')
def lagrangian(tmp_path_factory):
    return pruning_checkpoint(tmp_path_factory.mktemp('lagrangian'), 'lagrangian')


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('variant', ['llama-tied', 'llama-biases', 'gemma2'])
def test_same_folder_as_the_callback_writes(tmp_path, variant):
    checkpoint, pruned, _, _ = pruning_checkpoint(tmp_path, 'lagrangian', variant)
    report = export_checkpoint(checkpoint, tmp_path / 'out', ExportSettings(allow_unconverged=True, progress=False))
    assert report['logit_difference'] <= 1e-5
    ours, theirs = files_of(tmp_path / 'out'), files_of(pruned)
    assert (
        set(ours)
        == set(theirs)
        >= {'README.md', 'LICENSE', 'config.json', 'tokenizer.json', 'generation_config.json', 'pruning.json'}
    )
    assert {name for name in ours if ours[name] != theirs[name]} == {'README.md'}  # the folder's own name is in it


def test_the_exported_model_computes_what_the_masked_one_does(progressive, tmp_path):
    checkpoint, _, trainer, pruning = progressive
    export_checkpoint(checkpoint, tmp_path / 'out', QUIET)
    ids = torch.arange(3, 40)[None]
    model = trainer.state.model.eval()
    model.cutter.set_masks(pruning.final_masks())
    with torch.no_grad():
        expected = model.model(ids, use_cache=False).logits
        got = open_strictly(tmp_path / 'out')(ids).logits
    assert (got - expected).abs().max() <= 1e-5
    text = 'w3 w17 w80'
    assert AutoTokenizer.from_pretrained(tmp_path / 'out')(text).input_ids == tiny_tokenizer()(text).input_ids


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


def test_masks_that_have_not_converged_are_refused_with_counts(lagrangian, tmp_path, capsys):
    checkpoint, pruned, _, _ = lagrangian
    assert main(['export', str(checkpoint), '--out', str(tmp_path / 'out'), '--quiet']) == 1
    assert 'hidden: target 36 of 48, expected 47' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(['export', str(checkpoint), '--out', str(tmp_path / 'out'), '--quiet', '--allow-unconverged']) == 0
    assert 'logits differ from the masked model by at most' in capsys.readouterr().out
    for folder in (tmp_path / 'out', pruned):
        card = (folder / 'README.md').read_text()
        assert '**The masks had not converged to the target when they were fixed**' in card
        assert 'Per row: hidden: target 36 of 48, expected 47' in card


def test_weights_without_masks_are_pointed_out(progressive, tmp_path, caplog):
    content = torch.load(progressive[0], weights_only=False)
    content['state'] = {key: content['state'][key] for key in ('model', 'integrations')}  # save_weights_only
    torch.save(content, tmp_path / 'weights.pt')
    export_checkpoint(tmp_path / 'weights.pt', tmp_path / 'out', ExportSettings(progress=False))
    assert 'its masks are not in it' in caplog.text
    assert 'Trained for' not in (tmp_path / 'out' / 'README.md').read_text()  # how long is not in it, either
    assert main(['export', str(tmp_path / 'weights.pt'), '--out', 's3://bucket/out']) == 1


def test_a_checkpoint_of_pruning_without_its_masks_is_refused(progressive, tmp_path):
    checkpoint, *_ = progressive
    saved = torch.load(checkpoint, weights_only=False)
    del saved['state']['algorithms']
    for prunes in (False, True):
        saved['state']['callbacks']['ResumeSettings'] = {'settings': json.dumps({'prunes': prunes})}
        torch.save(saved, tmp_path / 'without.pt')
        if prunes:
            with pytest.raises(ValueError, match='without.pt is a checkpoint of pruning without its masks'):
                export_checkpoint(tmp_path / 'without.pt', tmp_path / 'pruned', QUIET)
        else:
            export_checkpoint(tmp_path / 'without.pt', tmp_path / 'uncut', QUIET)
    assert not (tmp_path / 'pruned').exists()


def test_current_masks_leave_only_where_they_are_uniform(lagrangian, tmp_path, monkeypatch):
    checkpoint, _, _, pruning = lagrangian
    settings = ExportSettings(masks='current', progress=False)
    content = torch.load(checkpoint, weights_only=False)
    learned = dict(content['state']['algorithms'])['TargetedPruning']['learner']['log_alpha']
    for row in learned['intermediate']:
        row[:50], row[50:] = 4.0, -4.6  # 50 surely open, 14 almost surely not
    torch.save(content, tmp_path / 'uniform.pt')
    export_checkpoint(tmp_path / 'uniform.pt', tmp_path / 'uniform', settings)
    shape = shape_of(open_strictly(tmp_path / 'uniform').config)
    # nothing went in six batches
    assert (shape.num_hidden_layers, shape.hidden_size, shape.num_key_value_heads) == (4, 48, 2)
    assert 50 <= shape.intermediate_size <= 52
    card = (tmp_path / 'uniform' / 'README.md').read_text()
    assert 'hidden 48 to 48 (target 36), layer 4 to 4 (target 3), ' in card
    assert f'intermediate 64 to {shape.intermediate_size} (target 40), kv_group 2 to 2 (target 1)' in card
    assert 'not to the target of the run**, which was num_hidden_layers=3, hidden_size=36' in card
    record = json.loads((tmp_path / 'uniform' / 'pruning.json').read_text())
    assert record['shape']['intermediate_size'] == shape.intermediate_size
    assert record['target_shape']['intermediate_size'] == 40
    # Sizes on the way to the target that transformers takes for no config are told before anything is written.
    hidden = learned['hidden'].clone()
    learned['hidden'][46:] = -4.6
    torch.save(content, tmp_path / 'odd.pt')
    if TRANSFORMERS_5:
        written = mock.Mock()
        told = '(?s)hidden_size=4[67], .*not a multiple of.*another checkpoint.*--masks keep.*--allow-unconverged'
        with monkeypatch.context() as patched, pytest.raises(ValueError, match=told):
            patched.setattr(pruned_folder, 'write_model_folder', written)
            export_checkpoint(tmp_path / 'odd.pt', tmp_path / 'odd', settings)
        assert not written.called and not (tmp_path / 'odd').exists()
    learned['hidden'] = hidden
    # One layer expects fewer than the others: no stock model holds that.
    learned['intermediate'][0, :32] = -4.6
    torch.save(content, tmp_path / 'ragged.pt')
    with pytest.raises(
        ValueError, match='layers of different shapes.*layer 0: 2 KV heads, 6 heads, [12][0-9] intermediate'
    ):
        export_checkpoint(tmp_path / 'ragged.pt', tmp_path / 'out', settings)
    assert not (tmp_path / 'out').exists()


def test_kept_masks_come_with_the_uncut_weights(lagrangian, tmp_path):
    checkpoint, _, trainer, pruning = lagrangian
    export_checkpoint(checkpoint, tmp_path / 'out', ExportSettings(masks='keep', dtype=torch.bfloat16, progress=False))
    masks = load_file(tmp_path / 'out' / 'masks' / 'masks.safetensors')
    assert {name.split('.')[0] for name in masks} == {'target', 'current', 'score'}
    assert torch.equal(masks['score.intermediate'], pruning.learner.scores()['intermediate'])
    assert (masks['target.hidden'] != 0).sum() == 36
    model = open_strictly(tmp_path / 'out', torch.bfloat16)
    for (name, got), expected in zip(model.named_parameters(), trainer.state.model.model.parameters()):
        assert torch.equal(got, expected.bfloat16()), name
    assert '**uncut**' in (tmp_path / 'out' / 'README.md').read_text()


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


def test_others_may_read_what_is_written(progressive, tmp_path):
    checkpoint, pruned, _, _ = progressive
    export_checkpoint(checkpoint, tmp_path / 'out', dataclasses.replace(QUIET, masks='keep'))
    (tmp_path / 'new').touch()
    usual = (tmp_path / 'new').stat().st_mode
    for folder in (tmp_path / 'out', pruned):
        assert {path.stat().st_mode for path in folder.rglob('*') if path.is_file()} == {usual}


class OfAUser(TargetedPruning):
    """Composer stores an algorithm's state under a name."""


def test_masks_are_found_whatever_the_class_is_called(tmp_path):
    pruning = OfAUser(TARGET, warmup='0.5dur')
    checkpoint, pruned, _, _ = pruning_checkpoint(tmp_path, pruning=pruning)
    content = torch.load(checkpoint, weights_only=False)
    ((_, state),) = content['state']['algorithms']
    assert state['kind'] == 'llmshearing.pruning'
    content['state']['algorithms'] = [('RenamedByItsUser', state)]
    torch.save(content, tmp_path / 'renamed.pt')
    del state['kind'], state['origin']
    torch.save(content, tmp_path / 'older.pt')  # as it was saved before states had a kind
    for number, path in enumerate((checkpoint, tmp_path / 'renamed.pt', tmp_path / 'older.pt')):
        report = export_checkpoint(path, tmp_path / f'out{number}', QUIET)
        assert (report['shape'].num_hidden_layers, report['shape'].hidden_size) == (3, 36)
        written = (tmp_path / f'out{number}' / 'model.safetensors').read_bytes()
        assert written == (pruned / 'model.safetensors').read_bytes()
    content['state']['algorithms'].append(('Another', state))
    torch.save(content, tmp_path / 'two.pt')
    with pytest.raises(ValueError, match=r'masks of 2 algorithms \(RenamedByItsUser, Another\)'):
        export_checkpoint(tmp_path / 'two.pt', tmp_path / 'out', QUIET)


@pytest.mark.parametrize('mask_settings', [{'freeze_masks_after': '4ba'}, ONE_SHOT], ids=['frozen', 'one_shot'])
def test_masks_that_are_fixed_are_kept_too(mask_settings, tmp_path):
    pruning = TargetedPruning(TARGET, **mask_settings)
    checkpoint, _, _, _ = pruning_checkpoint(tmp_path, pruning=pruning, eval_dataloader=sequences_spec(8, 4))
    assert main(['export', str(checkpoint), '--out', str(tmp_path / 'out'), '--masks', 'keep', '--quiet']) == 0
    masks = load_file(tmp_path / 'out' / 'masks' / 'masks.safetensors')
    final = pruning.final_masks()
    for kind in ('target', 'current'):
        assert all(torch.equal(masks[f'{kind}.{axis}'], mask) for axis, mask in final.items())
    assert shape_of(open_strictly(tmp_path / 'out').config).hidden_size == 48
    record = read_record(tmp_path / 'out')
    assert record.shape is None and record.kept['hidden'] == final['hidden'].nonzero().flatten().tolist()


@pytest.mark.parametrize('variant', ['llama', 'llama-tied'])
def test_continued_pretraining_leaves_as_it_is(tmp_path, variant):
    source = tiny_source(tmp_path / 'source', variant)
    model = ComposerHFCausalLM(
        tokenizer=tiny_tokenizer(), pretrained_model_name_or_path=str(source), use_train_metrics=False
    )
    trainer = tiny_trainer(
        source, [], batches=2, model=model, save_folder=str(tmp_path / 'saved'), save_filename='last.pt'
    )
    trainer.fit()
    trainer.close()
    export_checkpoint(
        tmp_path / 'saved' / 'last.pt', tmp_path / 'out', ExportSettings(max_shard_bytes=30_000, progress=False)
    )
    assert len(list((tmp_path / 'out').glob('model-*.safetensors'))) > 1
    exported = open_strictly(tmp_path / 'out')
    assert (exported.lm_head.weight is exported.model.embed_tokens.weight) == (variant == 'llama-tied')
    for (name, got), expected in zip(exported.named_parameters(), model.model.parameters()):
        assert torch.equal(got, expected), name
    with pytest.raises(ValueError, match="masks='keep'.* not from the pruning stage"):
        export_checkpoint(
            tmp_path / 'saved' / 'last.pt', tmp_path / 'kept', ExportSettings(masks='keep', progress=False)
        )
    assert not (tmp_path / 'kept').exists()


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


def test_missing_extra_and_misshaped_tensors_are_named(progressive, tmp_path):
    checkpoint, _, _, _ = progressive
    content = torch.load(checkpoint, weights_only=False)
    model = content['state']['model']
    del model['model.model.layers.2.mlp.up_proj.weight']
    model['model.model.layers.9.mlp.up_proj.weight'] = torch.zeros(2)
    model['model.model.norm.weight'] = torch.zeros(47)
    torch.save(content, tmp_path / 'broken.pt')
    with pytest.raises(ValueError) as error:
        export_checkpoint(tmp_path / 'broken.pt', tmp_path / 'out', QUIET)
    assert 'missing: model.layers.2.mlp.up_proj.weight' in str(error.value)
    assert 'not expected: model.layers.9.mlp.up_proj.weight' in str(error.value)
    assert 'model.norm.weight is [47], expected [48]' in str(error.value)
    assert not (tmp_path / 'out').exists()


def test_masks_of_another_shape_or_version_are_refused(progressive, tmp_path):
    checkpoint, _, _, _ = progressive

    def with_masks(**changes):
        content = torch.load(checkpoint, weights_only=False)
        state = dict(content['state']['algorithms'])['TargetedPruning']
        content['state']['algorithms'] = [('TargetedPruning', {**state, **changes})]
        torch.save(content, tmp_path / 'changed.pt')
        return content

    with_masks(version=99)
    with pytest.raises(ValueError, match='version 99'):
        export_checkpoint(tmp_path / 'changed.pt', tmp_path / 'out', QUIET)
    state = dict(torch.load(checkpoint, weights_only=False)['state']['algorithms'])['TargetedPruning']
    with_masks(source={**state['source'], 'hidden_size': 64})
    with pytest.raises(ValueError, match='hidden_size=64.*hidden_size=48'):
        export_checkpoint(tmp_path / 'changed.pt', tmp_path / 'out', QUIET)
    learner = {**state['learner'], 'importance': {**state['learner']['importance'], 'layer': torch.zeros(5)}}
    with_masks(learner=learner)
    with pytest.raises(ValueError, match=r'layer mask: got shape \(5,\), expected shape \(4,\)'):
        export_checkpoint(tmp_path / 'changed.pt', tmp_path / 'out', QUIET)


def test_what_was_written_is_read_back(progressive, tmp_path):
    checkpoint, _, _, _ = progressive
    export_checkpoint(checkpoint, tmp_path / 'out', QUIET)
    tensors = load_file(tmp_path / 'out' / 'model.safetensors')
    assert verify_tensors(tmp_path / 'out', tensors.items(), lambda tensor: tensor) == len(tensors)
    tensors['model.norm.weight'][0] += 1e-3
    with pytest.raises(ValueError, match='model.norm.weight was read back with other values'):
        verify_tensors(tmp_path / 'out', tensors.items(), lambda tensor: tensor)
    del tensors['model.norm.weight']
    with pytest.raises(ValueError, match='tensors were written'):
        verify_tensors(tmp_path / 'out', tensors.items(), lambda tensor: tensor)


def test_an_existing_folder_stays_unless_told(progressive, tmp_path):
    checkpoint, _, _, _ = progressive
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine').write_text('precious')
    with pytest.raises(ValueError, match='exists already'):
        export_checkpoint(checkpoint, tmp_path / 'out', QUIET)
    overwriting = ExportSettings(overwrite=True, progress=False)
    with pytest.raises(ValueError, match='is no model folder .it holds mine., so it is not replaced'):
        export_checkpoint(checkpoint, tmp_path / 'out', overwriting)
    assert (tmp_path / 'out' / 'mine').read_text() == 'precious'
    (tmp_path / 'out' / 'config.json').write_text('{}')  # of a model
    export_checkpoint(checkpoint, tmp_path / 'out', overwriting)
    open_strictly(tmp_path / 'out')


def test_the_source_of_the_run_is_not_replaced(progressive, tmp_path):
    checkpoint, _, _, pruning = progressive
    source = Path(pruning.origin[0])
    before = files_of(source)
    with pytest.raises(ValueError, match='is not replaced, as .* is needed'):
        export_checkpoint(checkpoint, source, ExportSettings(overwrite=True, progress=False))
    assert files_of(source) == before


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--tolerance', '5'], '--tolerance: expected a number of at least 0 and at most 1, got 5.0'),
        (['--tolerance', 'nan'], '--tolerance: expected a number'),
        (['--tokenizer', '/no/such/folder'], '--tokenizer /no/such/folder: no tokenizer opens there'),
        (['--public'], '--public is for a repository of --push-to-hub'),
    ],
)
def test_options_that_cannot_be_meant(progressive, tmp_path, capsys, options, words):
    assert main(['export', str(progressive[0]), '--out', str(tmp_path / 'out'), *options]) == 1
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_not_the_disk_s_fault(progressive, tmp_path):
    saved = torch.load(progressive[0], weights_only=False)
    next(iter(saved['state']['model'].values())).fill_(float('nan'))
    torch.save(saved, tmp_path / 'nan.pt')
    with pytest.raises(ValueError, match='holds NaN or infinity: the run diverged'):
        export_checkpoint(tmp_path / 'nan.pt', tmp_path / 'out', QUIET)


def test_weights_that_the_asked_type_does_not_reach_are_not_written_as_infinity(progressive, tmp_path):
    saved = torch.load(progressive[0], weights_only=False)
    next(iter(saved['state']['model'].values())).fill_(1e6)
    torch.save(saved, tmp_path / 'large.pt')
    settings = ExportSettings(dtype=torch.float16, progress=False)
    with pytest.raises(ValueError, match='has values up to 1e.06, which float16 does not reach'):
        export_checkpoint(tmp_path / 'large.pt', tmp_path / 'out', settings)
    assert not (tmp_path / 'out').exists()


def test_remote_checkpoints_and_the_hub(progressive, tmp_path, monkeypatch, capsys):
    import shutil

    import huggingface_hub

    checkpoint, _, _, _ = progressive
    monkeypatch.setattr('composer.utils.get_file', lambda uri, path, progress_bar: shutil.copyfile(checkpoint, path))
    calls = []

    class Hub:
        def whoami(self):
            calls.append(('whoami', (tmp_path / 'out').exists()))

        def create_repo(self, repo, repo_type, private, exist_ok):
            calls.append(('create', repo, private, exist_ok))
            return huggingface_hub.RepoUrl(f'https://huggingface.co/{repo}')

        def upload_folder(self, folder_path, repo_id, repo_type, commit_message):
            calls.append(('upload', folder_path, repo_id, 'model.safetensors' in files_of(tmp_path / 'out')))

    monkeypatch.setattr(huggingface_hub, 'HfApi', Hub)
    arguments = [
        'export',
        's3://bucket/run/ba6.pt',
        '--out',
        str(tmp_path / 'out'),
        '--quiet',
        '--push-to-hub',
        'me/small',
    ]
    assert main(arguments) == 0
    assert 'uploaded to https://huggingface.co/me/small' in capsys.readouterr().out
    upload = ('upload', str(tmp_path / 'out'), 'me/small', True)
    assert calls == [('whoami', False), ('create', 'me/small', True, True), upload]
    calls.clear()
    assert main([*arguments, '--public', '--overwrite']) == 0
    assert calls[1:] == [('create', 'me/small', False, True), upload]
