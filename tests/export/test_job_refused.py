"""What no export lets through: masks, tensors, weights and options that are wrong, and folders that are in use."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmshearing.cli import main
from llmshearing.export.job import export_checkpoint
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.settings import ExportSettings
from llmshearing.export.verification import verify_tensors
from tests.export.checkpoints import QUIET, files_of, lagrangian, progressive  # noqa: F401


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
