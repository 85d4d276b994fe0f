"""A whole configuration is checked before anything is built, and what can run passes."""

import copy
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import catalogue
import numpy as np
import pytest
import torch
from llmfoundry.registry import algorithms
from streaming import MDSWriter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.config.run import check_run, prepare_run
from llmshearing.data.fingerprint import describe_tokenizer
from tests.config.demo_run import changed
from tests.tiny_run import tiny_tokenizer


def test_the_shipped_configuration_passes_and_trusts_no_remote_code(config):
    expected = copy.deepcopy(config)
    expected['model']['trust_remote_code'] = False
    expected['tokenizer']['kwargs'] = {'trust_remote_code': False}
    expected.update(log_to_console=False, progress_bar=False)  # console_progress writes instead
    assert prepare_run(copy.deepcopy(config)) == expected


@pytest.mark.parametrize('content', ['[]', '\ufeff{}', None])
def test_a_config_that_cannot_be_read_is_no_matter_of_the_tokenizer(config, tmp_path, content):
    """transformers reads it to open the tokenizer beside it, and that was what a run told of."""
    source = shutil.copytree(config['model']['pretrained_model_name_or_path'], tmp_path / 'other')
    path = source / 'config.json'
    path.write_text(content or json.dumps({**json.loads(path.read_text()), 'dtype': 'fp16'}), 'utf-8')
    config = changed(config, 'model.pretrained_model_name_or_path', str(source))
    with pytest.raises(
        ValueError, match=r'^tokenizer.name: (the config of \S*other cannot be read|\S*other: the config has dtype)'
    ):
        check_run(changed(config, 'tokenizer.name', str(source)))


def test_a_sparsity_is_a_target_as_long_as_nothing_is_exported(config):
    settings = {'target': {'sparsity': 0.5}, 'mask_learning': 'lagrangian'}
    config = changed(config, 'algorithms.targeted_pruning', settings)
    with pytest.raises(ValueError, match='callbacks.export_pruned: a run whose target is a sparsity'):
        prepare_run(copy.deepcopy(config))
    prepare_run(changed(config, 'callbacks.export_pruned', KeyError))


def test_tokenizer_and_evaluation_data_belong_to_the_source(config, tmp_path):
    """Both of another tokenizer of the same size used to train to the end."""
    words = [f'w{i}' for i in range(94)]
    stored = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    stored['model']['vocab'] |= dict(zip(words, range(96, 2, -1)))
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(stored)), pad_token='<pad>')
    other.save_pretrained(tmp_path / 'other')
    with pytest.raises(ValueError, match='tokenizer.name: the tokenizer in .*source is another one than .*other'):
        check_run(changed(config, 'tokenizer.name', str(tmp_path / 'other')))
    with MDSWriter(out=str(tmp_path / 'eval' / 'web'), columns={'tokens': 'ndarray:uint16'}) as writer:
        writer.write({'tokens': np.zeros(256, np.uint16)})
    (tmp_path / 'manifest.json').write_text(json.dumps({'tokenizer': describe_tokenizer(other)}))
    with pytest.raises(ValueError, match=f'data below {tmp_path} was made with another tokenizer'):
        check_run(changed(config, 'eval_loaders.0.dataset.local', str(tmp_path / 'eval' / 'web')))


def test_runs_without_our_parts_are_left_alone():
    assert prepare_run({'model': {'name': 'mpt_causal_lm'}, 'odd': 1}) == {'model': {'name': 'mpt_causal_lm'}, 'odd': 1}


@pytest.mark.parametrize(
    'path, value',
    [
        ('fsdp_config', {'mixed_precision': {'param_dtype': 'bf16', 'reduce_dtype': 'fp32'}}),
        ('tokenizer.kwargs', {'revision': '0123456789' * 4, 'stop_token': '</s>'}),
        ('metadata', {'commit': '0123456789' * 4}),
    ],
)
def test_unusual_settings_that_can_run_pass(config, path, value):
    prepare_run(changed(config, path, value))


def test_an_evaluator_of_several_streams_passes(config):
    config = copy.deepcopy(config)
    dataset = config['eval_loaders'][0]['dataset']
    folder = dataset.pop('local')
    dataset['streams'] = {'one': {'local': folder}, 'two': {'local': folder, 'proportion': 0.5}}
    prepare_run(config)
    dataset['streams']['two']['proportoin'] = 1.0
    with pytest.raises(ValueError, match="streams.two: unknown key 'proportoin'"):
        prepare_run(config)
    dataset['streams'] = [{'local': folder}]
    with pytest.raises(ValueError, match='streams: expected keys and values'):
        prepare_run(config)


def test_what_this_package_logs_has_the_level_of_the_run(config):
    logger = logging.getLogger('llmshearing')
    for level in ('info', 'warning'):
        prepare_run({**config, 'python_log_level': level})
        assert logger.getEffectiveLevel() == getattr(logging, level.upper())


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('save_interval', '0ba', 'save_interval: expected a time above 0'),
        ('save_num_checkpoints_to_keep', 0, 'save_num_checkpoints_to_keep: 0 removes every checkpoint'),
    ],
)
def test_a_folder_of_checkpoints_that_stays_empty_is_refused(config, tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        prepare_run({**config, 'save_folder': str(tmp_path / 'ck'), key: value})


def test_an_existing_export_is_refused_before_training(config):
    config = changed(config, 'callbacks.export_pruned.folder', str(Path(config['variables']['work']) / 'source'))
    config['callbacks']['export_pruned']['overwrite'] = False
    with pytest.raises(ValueError, match='exists already; choose another folder or allow replacing it'):
        prepare_run(copy.deepcopy(config))
    config['callbacks']['export_pruned']['overwrite'] = True
    with pytest.raises(ValueError, match='is not replaced, as .*/source is needed'):
        prepare_run(config)


@pytest.mark.parametrize(
    'place',
    ['loggers.metrics_file.path', 'callbacks.dynamic_batch_loading.weights_file', 'callbacks.run_report.folder'],
)
def test_an_export_into_files_of_the_run_is_refused(config, tmp_path, place):
    into = changed(config, 'callbacks.export_pruned.folder', str(tmp_path / 'out'))
    if place.startswith('callbacks.run_report'):
        into['callbacks'].setdefault('run_report', {})
    with pytest.raises(ValueError, match=f'{place}: .* is written into it meanwhile; choose another folder'):
        prepare_run(changed(into, place, str(tmp_path / 'out' / 'it')))


def test_an_export_that_would_remove_the_checkpoints_is_refused(config, tmp_path):
    (tmp_path / 'config.json').touch()
    config = changed(config, 'callbacks.export_pruned', {'folder': str(tmp_path), 'overwrite': True})
    prepare_run(changed(config, 'save_folder', str(tmp_path.parent / 'saved')))
    with pytest.raises(ValueError, match='is not replaced, as .*/saved is needed'):
        prepare_run(changed(config, 'save_folder', str(tmp_path / 'saved')))


def test_epochs_are_told_in_batches(config, caplog):
    batches = config['train_loader']['dataset']['round_batches']
    with caplog.at_level(logging.WARNING):
        prepare_run(changed(config, 'max_duration', 10))
    assert f'max_duration: 10 ends after {10 * batches} batches' in caplog.text


def test_a_pruning_run_that_keeps_nothing_is_told_before_it_begins(config, caplog):
    assert 'save_folder' not in config
    with caplog.at_level(logging.WARNING):
        prepare_run(copy.deepcopy(config))
        without = changed(config, 'callbacks.export_pruned', KeyError)
        prepare_run({**copy.deepcopy(without), 'save_folder': 'x'})
        assert 'keeps nothing' not in caplog.text
        prepare_run(without)
    assert 'keeps nothing of what it prunes. Set save_folder for checkpoints, or callbacks.export_pruned' in caplog.text


def test_compilation_of_the_next_stage_is_checked(config):
    config = changed(config, 'algorithms', None)
    del config['callbacks']['export_pruned']
    prepare_run(changed(config, 'compile_config', {}))
    with pytest.raises(ValueError, match="compile_config: unknown key 'modes'. Did you mean 'mode'"):
        prepare_run(changed(config, 'compile_config', {'modes': 'default'}))
    with pytest.raises(ValueError, match='compile_config.backend: expected one of .*inductor.*zzz'):
        prepare_run(changed(config, 'compile_config', {'backend': 'zzz'}))
    with pytest.raises(ValueError, match='compile_config.mode: expected one of default'):
        prepare_run(changed(config, 'compile_config', {'mode': 'zzz'}))


def test_unsupported_architectures_are_named(config, tmp_path):
    from transformers import PhimoeConfig, T5Config

    for wrong, message in (
        (PhimoeConfig(), "'phimoe' \\(a mixture of experts\\).*supported: "),
        (T5Config(), "'t5' \\(an encoder-decoder"),
    ):
        wrong.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=message):
            prepare_run(changed(config, 'model.pretrained_model_name_or_path', str(tmp_path)))


@pytest.mark.parametrize(
    'path, value, message',
    [
        ('device_train_microbatch_size', 'auto', 'auto, which is also the default, does not work under FSDP2'),
        ('algorithms.targeted_pruning.freeze_weights', True, 'set fsdp_config.state_dict_type: sharded'),
    ],
)
def test_what_works_without_fsdp_only(config, monkeypatch, path, value, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('FSDP_VERSION', '2')
    config = changed(config, path, value)
    prepare_run(copy.deepcopy(config))
    with pytest.raises(ValueError, match=message):
        prepare_run({**config, 'fsdp_config': {'activation_checkpointing': True}})


def test_fsdp1_is_refused_and_fsdp2_chosen(config, monkeypatch):
    monkeypatch.setenv('FSDP_VERSION', '1')
    with pytest.raises(ValueError, match='FSDP1 cannot start on CPU|pruning is built for FSDP2'):
        prepare_run({**config, 'fsdp_config': {'activation_checkpointing': True}})
    monkeypatch.delenv('FSDP_VERSION')
    prepare_run({**config, 'fsdp_config': {'activation_checkpointing': True}})
    import os

    assert os.environ['FSDP_VERSION'] == '2'


def test_checks_change_nothing(config, monkeypatch):
    """What a run's process needs is set by one function, and by no check."""
    import os

    monkeypatch.delenv('FSDP_VERSION', raising=False)
    before, environment = copy.deepcopy(config), dict(os.environ)
    level = logging.getLogger('llmshearing').level
    check_run(config)
    assert config == before and dict(os.environ) == environment
    assert logging.getLogger('llmshearing').level == level


def test_transformers_words_on_what_composer_asks_for_stay_out_of_the_console():
    ask = 'from transformers import LlamaConfig; LlamaConfig().use_return_dict'
    script = f'from llmshearing.config.process import prepare_process; prepare_process(); {ask}'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert 'use_return_dict' not in done.stderr


def test_an_algorithm_that_another_package_made_of_pruning_is_held_against_the_run_too(config):
    """Its export was refused for want of targeted_pruning, and none of the checks of pruning were made."""

    class Theirs(TargetedPruning):
        pass

    algorithms.register('theirs', func=Theirs)
    try:
        config = changed(config, 'algorithms', {'theirs': config['algorithms']['targeted_pruning']})
        check_run(copy.deepcopy(config))
        for path, value, message in (
            ('model.name', 'hf_causal_lm', 'algorithms.theirs needs model.name: sheared_causal_lm'),
            ('compile_config', {}, 'a model that is being pruned is not compiled'),
            ('save_weights_only', True, 'leaves the masks out of the checkpoints'),
            ('algorithms.theirs.target.hidden_size', 64, "hidden_size=64 is larger than the source's 48"),
        ):
            with pytest.raises(ValueError, match=message):
                check_run(changed(config, path, value))
    finally:
        catalogue.REGISTRY.pop((*algorithms.namespace, 'theirs'))
