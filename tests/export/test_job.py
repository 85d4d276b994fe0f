"""Export from checkpoints: the same folder as the callback writes, for each stage and mask choice."""

import dataclasses
import json
from unittest import mock

import pytest
import torch
from llmfoundry.models.hf import ComposerHFCausalLM
from safetensors.torch import load_file
from transformers import AutoTokenizer

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.cli import main
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.export import pruned_folder
from llmshearing.export.job import export_checkpoint
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.settings import ExportSettings
from llmshearing.metrics.pruning_record import read_record
from llmshearing.models.shapes import shape_of
from tests.export.checkpoints import QUIET, TARGET, files_of, lagrangian, progressive, pruning_checkpoint  # noqa: F401
from tests.tiny_run import sequences_spec, tiny_source, tiny_tokenizer, tiny_trainer

ONE_SHOT = {'mask_learning': 'one_shot', 'scores': 'magnitude'}


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


def test_weights_without_masks_are_pointed_out(progressive, tmp_path, caplog):
    content = torch.load(progressive[0], weights_only=False)
    content['state'] = {key: content['state'][key] for key in ('model', 'integrations')}  # save_weights_only
    torch.save(content, tmp_path / 'weights.pt')
    export_checkpoint(tmp_path / 'weights.pt', tmp_path / 'out', ExportSettings(progress=False))
    assert 'its masks are not in it' in caplog.text
    assert 'Trained for' not in (tmp_path / 'out' / 'README.md').read_text()  # how long is not in it, either
    assert main(['export', str(tmp_path / 'weights.pt'), '--out', 's3://bucket/out']) == 1


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
