"""Resumption that would begin anew: one message before anything is built."""

import os
import re
from pathlib import Path

import catalogue
import pytest
import torch
from llmfoundry.registry import algorithms
from torch.distributed import checkpoint as sharded

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.compat.transformers import EXPERTS_ARE_MODULES
from llmshearing.config.resume import check_fits, check_resume
from tests.models.tiny import tiny_model


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv('RUN_NAME', raising=False)


@pytest.fixture()
def config(tmp_path):
    (tmp_path / 'save').mkdir()
    return {'save_folder': str(tmp_path / 'save'), 'autoresume': True, 'model': {'name': 'sheared_causal_lm'}}


def test_a_good_configuration_passes(config):
    check_resume({**config, 'fsdp_config': {'state_dict_type': 'sharded'}})


def test_what_is_saved_can_be_gone_on_from(config):
    """A run that was stopped trained its last weights from batch 0 again, and nothing was said."""
    with pytest.raises(ValueError, match='autoresume: true goes on from whole .* Set one of them to false'):
        check_resume({**config, 'save_weights_only': True})
    for changes in ({'autoresume': False}, {'save_weights_only': False}):
        check_resume({**config, 'save_weights_only': True, **changes})


def test_a_load_path_that_is_not_read_is_told(config, tmp_path, caplog):
    save = tmp_path / 'save'
    for path in (save / 'ba4-rank0.pt', tmp_path / 'first.pt'):
        torch.save({'state': {}}, path)
    config = {**config, 'load_path': str(tmp_path / 'first.pt')}
    check_resume(config)
    os.symlink('ba4-rank0.pt', save / 'latest-rank0.pt')
    check_resume({**config, 'load_path': str(save / 'ba4-rank{rank}.pt')})
    check_resume({**config, 'autoresume': False})
    assert not caplog.records
    check_resume(config)
    (record,) = caplog.records
    assert record.getMessage() == (
        f'load_path: {tmp_path}/first.pt is not read, as autoresume goes on from {save}/ba4-rank0.pt. To begin with '
        'it, choose another save_folder.'
    )


@pytest.mark.parametrize('file', ['', 'model.safetensors'])
def test_a_model_is_no_checkpoint(config, tmp_path, file):
    """A folder was told to be a sharded checkpoint, its weights to be damaged."""
    tiny_model().save_pretrained(tmp_path / 'export')
    with pytest.raises(ValueError, match='is a model and no checkpoint of a run; name its folder as model.pretrained'):
        check_resume({**config, 'autoresume': False, 'load_path': str(tmp_path / 'export' / file)})


@pytest.mark.parametrize('sharded, link', [(False, 'latest-rank0.pt'), (True, 'latest-sharded-rank0')])
def test_checkpoints_without_the_link_would_begin_anew(config, tmp_path, sharded, link):
    save = tmp_path / 'save'
    config['fsdp_config'] = {'state_dict_type': 'sharded'} if sharded else None
    for number, batch in enumerate((100, 20)):
        path = save / (f'ep0-ba{batch}' if sharded else f'ep0-ba{batch}-rank0.pt')
        if sharded:
            path.mkdir()
        (path / '.metadata').write_text('x') if sharded else torch.save({'batch': batch}, path)
        os.utime(path, (number, number))
    newest = 'ep0-ba20' if sharded else 'ep0-ba20-rank0.pt'
    for refused in (config, {**config, 'save_folder': str(tmp_path / '{run_name}'), 'run_name': 'save'}):
        with pytest.raises(
            ValueError, match=f'{newest} is the newest.*begin anew. To go on: ln -s {newest} .*/{link};'
        ):
            check_resume(refused)
    for changes in ({'autoresume': False}, {'save_folder': 's3://bucket/save'}, {'save_folder': str(tmp_path / 'new')}):
        check_resume({**config, **changes})
    os.symlink(newest, save / link)
    check_resume(config)
    os.remove(save / link)
    os.symlink('gone', save / link)
    with pytest.raises(ValueError, match='points to gone, which is not there'):
        check_resume(config)
    check_resume({**config, 'save_latest_filename': newest})


def test_the_advice_for_several_processes_with_a_single_file_works(config, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    path = tmp_path / 'save' / 'ba1.pt'
    torch.save({'batch': 1}, path)
    os.symlink(path.name, tmp_path / 'save' / 'latest-sharded-rank0')
    config['fsdp_config'] = {'state_dict_type': 'sharded'}
    with pytest.raises(ValueError, match=f'fsdp_config.state_dict_type: full load_path={path} autoresume: false'):
        check_resume(config)
    check_resume({**config, 'fsdp_config': {'state_dict_type': 'full'}, 'load_path': str(path), 'autoresume': False})


def test_a_checkpoint_that_was_cut_off_is_not_offered(config, tmp_path):
    save = tmp_path / 'save'
    for number, batch in enumerate((5, 7)):
        torch.save({'batch': batch}, save / f'ba{batch}.pt')
        os.utime(save / f'ba{batch}.pt', (number, number))
    newest = save / 'ba7.pt'
    newest.write_bytes(newest.read_bytes()[:-100])
    os.utime(newest, (2, 2))
    with pytest.raises(ValueError, match='ba5.pt is the newest; ba7.pt is newer, but cut off.* ln -s ba5.pt'):
        check_resume(config)
    (save / 'ba5.pt').unlink()
    with pytest.raises(ValueError, match='holds no whole checkpoint: ba7.pt was cut off'):
        check_resume(config)


@pytest.mark.parametrize('is_sharded', [False, True])
@pytest.mark.parametrize('variant', ['llama', 'llama-tied', 'gpt_neox'])
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_built(config, tmp_path, variant, is_sharded):
    weights, path = dict(saved(tiny_model(variant))), tmp_path / 'ck'
    if is_sharded:
        sharded.save({'state': {'model': weights}}, checkpoint_id=path, no_dist=True)
    else:
        torch.save({'state': {'model': weights}}, path)
    config = {**config, 'load_path': str(path)}
    check_fits(config, tiny_model(variant).config)
    check_fits(config | {'load_path': str(tmp_path / 'none')}, tiny_model(variant, vocab_size=120).config)
    with pytest.raises(ValueError, match=r'another model than .* is \[97, 48\] there and \[120, 48\] here. To go'):
        check_fits(config, tiny_model(variant, vocab_size=120).config)
    fewer = tiny_model(variant, num_hidden_layers=3).config
    with pytest.raises(ValueError, match=r'layers.3.* is .* there and none here'):
        check_fits(config, fewer)
    check_fits({**config, 'load_strict_model_weights': False}, fewer)
    for pattern in ('state/model/*layers.3*', '*layers.3*'):
        check_fits({**config, 'load_ignore_keys': [pattern]}, fewer)
    with pytest.raises(ValueError, match='another model than'):  # whatever else is left out
        check_fits({**config, 'load_ignore_keys': ['rng', 'state/optimizers']}, fewer)


def test_a_mixtures_checkpoint_of_the_other_generation_of_transformers_is_refused(config, tmp_path):
    model = tiny_model('mixtral')
    other = {re.sub(r'experts\.\d+\.\w+\.weight', 'experts.down_proj', name): tensor for name, tensor in saved(model)}
    if not EXPERTS_ARE_MODULES:
        other = {name.replace('experts.down_proj', 'experts.0.w2.weight'): tensor for name, tensor in saved(model)}
    torch.save({'state': {'model': other}}, tmp_path / 'ck')
    there, here = (5, 4) if EXPERTS_ARE_MODULES else (4, 5)
    said = f'ck is of transformers {there}, .* than transformers {here} here. Finish the run'
    with pytest.raises(ValueError, match=said):
        check_fits({**config, 'load_path': str(tmp_path / 'ck')}, model.config)


def saved(model):
    return [(f'model.{name}', tensor) for name, tensor in model.state_dict().items()]


OF_PRUNING = str(Path(__file__).parents[1] / 'checkpoints' / 'before_the_move' / 'progressive.pt')
PRUNES = {'algorithms': {'targeted_pruning': {}}}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, 'is a checkpoint of pruning, and this run has no algorithms.targeted_pruning: .*llmshearing export'),
        ({'load_weights_only': True}, 'is a checkpoint of pruning, and this run has no'),
        (
            {'load_weights_only': True, 'algorithms': {'targeted_pruning': {}}},
            'load_weights_only: true would leave its masks out',
        ),
        ({'algorithms': {'targeted_pruning': {}}}, None),
        (
            {'algorithms': {'targeted_pruning': {}}, 'load_ignore_keys': ['rng', 'state/algorithms*']},
            r"load_ignore_keys: 'state/algorithms\*' leaves the masks of .* out.*Remove it",
        ),
        (
            {'algorithms': {'distillation': {}, 'targeted_pruning': {}}, 'load_ignore_keys': ['state/algorithms/1']},
            "load_ignore_keys: 'state/algorithms/1' leaves the masks",
        ),
        *(
            (
                {'algorithms': {'targeted_pruning': {}}, 'load_ignore_keys': [key]},
                'load_ignore_keys: .* leaves weights of .* out.*Remove it to go on; .* load_weights_only: true',
            )
            for key in ('state/model/*', 'state/model', '*model*', 'state/model/model.lm_head.weight')
        ),
        ({'algorithms': {'targeted_pruning': {}}, 'load_ignore_keys': ['rng', 'state/dataset_state*']}, None),
        (
            {'algorithms': {'distillation': {}, 'targeted_pruning': {}}, 'load_ignore_keys': ['state/algorithms/0']},
            None,
        ),
    ],
)
def test_masks_and_weights_belong_together(config, changes, message):
    config = {**config, 'load_path': OF_PRUNING, **changes}
    if message is None:
        check_resume(config)
    else:
        with pytest.raises(ValueError, match=message):
            check_resume(config)


def test_pruning_begins_at_batch_0(config, tmp_path):
    torch.save({'state': {'model': {}, 'algorithms': []}}, tmp_path / 'plain.pt')
    config = {**config, 'load_path': str(tmp_path / 'plain.pt'), 'algorithms': {'targeted_pruning': {}}}
    with pytest.raises(ValueError, match='units would never be scored.* Set load_weights_only: true'):
        check_resume(config)
    check_resume({**config, 'load_weights_only': True})
    ignoring = {**config, 'load_path': 's3://bucket/ck.pt', 'load_ignore_keys': ['state/algorithms']}
    with pytest.raises(ValueError, match='leaves the masks of s3://bucket/ck.pt out'):
        check_resume(ignoring)
    check_resume({**ignoring, 'load_weights_only': True})
    check_resume({**config, 'algorithms': {}})


@pytest.mark.parametrize(
    ('changes', 'settings', 'message'),
    [
        ({}, {'load_weights_only': True}, r'begin with .*=FOLDER and no callbacks.load_checkpoint.load_path\.'),
        (
            PRUNES,
            {'load_weights_only': True},
            'callbacks.load_checkpoint.load_weights_only: true would leave its masks',
        ),
        (PRUNES, {'ignore_keys': ['state/algorithms']}, "callbacks.load_checkpoint.ignore_keys: 'state/algorithms'"),
        (PRUNES, {'load_path': 's3://bucket/ck.pt', 'ignore_keys': ['state/*']}, 'the masks of s3://bucket/ck.pt out'),
        (PRUNES, {'ignore_keys': ['state/model/*']}, 'callbacks.load_checkpoint.ignore_keys: .* leaves weights'),
        (PRUNES, {}, None),
        ({}, {'load_path': '/no/such.pt'}, None),
    ],
)
def test_what_the_callback_of_composer_loads_is_held_against_the_run_too(config, changes, settings, message):
    config = {**config, **changes, 'callbacks': {'load_checkpoint': {'load_path': OF_PRUNING, **settings}}}
    if message is None:
        check_resume(config)
    else:
        with pytest.raises(ValueError, match=message):
            check_resume(config)


def test_an_algorithm_that_another_package_made_of_pruning_goes_on(config):
    class Theirs(TargetedPruning):
        pass

    algorithms.register('theirs', func=Theirs)
    try:
        check_resume({**config, 'load_path': OF_PRUNING, 'algorithms': {'theirs': {}}})
    finally:
        catalogue.REGISTRY.pop((*algorithms.namespace, 'theirs'))
