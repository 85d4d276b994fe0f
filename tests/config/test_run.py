"""A configuration that cannot run is refused before anything is built,
with what was got, what is possible, what to change."""

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
from omegaconf import OmegaConf
from streaming import MDSWriter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.config.run import check_run, prepare_run
from llmshearing.data.fingerprint import describe_tokenizer
from tests.tiny_run import tiny_source, tiny_tokenizer

YAML = Path(__file__).parents[2] / 'yamls' / 'demo' / 'prune.yaml'
TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    work = tmp_path_factory.mktemp('checks')
    tiny_source(work / 'source')
    settings = OmegaConf.load(YAML)
    settings.variables.work = str(work)
    settings.algorithms.targeted_pruning.target = TARGET
    for loader in settings.eval_loader:
        folder = Path(loader.dataset.local)
        folder.mkdir(parents=True)
        (folder / 'index.json').write_text('{"version": 2, "shards": []}')
    config = OmegaConf.to_container(settings, resolve=True)
    config['eval_loaders'] = config.pop('eval_loader')  # as llm-foundry hands lists on
    return config


def changed(config, path, value):
    config = copy.deepcopy(config)
    *parents, last = path.split('.') if isinstance(path, str) else [path]
    place = config
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return config


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
    'path, value, message',
    [
        ('algorithms.targeted_pruning.target.hidden_size', 64, "hidden_size=64 is larger than the source's 48"),
        ('algorithms.targeted_pruning.target.num_attention_heads', 5, 'every KV head must keep the same number'),
        ('algorithms.targeted_pruning.target.head_dim', 4, 'head dimension is inherited'),
        ('algorithms.targeted_pruning.target.width', 4, 'unknown key.*width'),
        ('algorithms.targeted_pruning.warm_up', '2ba', "unknown key 'warm_up'. Did you mean 'warmup'"),
        ('algorithms.targeted_pruning.target', KeyError, 'algorithms.targeted_pruning: missing target'),
        ('algorithms.targeted_pruning.mask_learning', 'magic', 'expected one of lagrangian, progressive'),
        ('algorithms.targeted_pruning.warmup', 'soon', 'soon'),
        ('algorithms.targeted_pruning.warmup', '3iter', 'in one of ba, sp, tok, ep, dur'),
        ('algorithms.targeted_pruning.freeze_masks_after', '60sec', 'in one of ba, sp, tok, ep, dur'),
        ('algorithms.targeted_pruning.warmup', '0.2ep', "warmup: expected a time such as 100ba, .* got '0.2ep'"),
        ('max_duration', '0.5ep', 'max_duration: expected a time such as 100ba'),
        ('train_subset_num_batches', 2, 'would serve the beginning of every mixing round'),
        (
            'callbacks.dynamic_batch_loading.weights_file',
            's3://bucket/x',
            'weights_file: expected a file on this machine',
        ),
        ('loggers.metrics_file.path', 's3://bucket/x', 'metrics_file.path: expected a file on this machine'),
        ('algorithms.gradient_clipping', {'clipping_type': 'nrom', 'clipping_threshold': 1.0}, 'expected one of norm'),
        ('loggers.metrics_file.path', '/tmp', 'metrics_file.path: expected a file, and /tmp is a folder'),
        ('callbacks.dynamic_batch_loading.weights_file', '/tmp', 'weights_file: expected a file, and /tmp is a folder'),
        ('callbacks.export_pruned.folder', '/dev/null/x', 'folder: /dev/null/x cannot be made, as /dev/null is no'),
        ('fsdp_config', {'mixed_precision': {'param_type': 'bf16'}}, "'param_type'. Did you mean 'param_dtype'"),
        ('tokenizer.kwargs', {'auth': '0123456789' * 4}, 'looks like a secret'),
        ('save_weights_only', True, 'leaves the masks out of the checkpoints'),
        ('save_ignore_keys', ['rng', 'state/*'], r"save_ignore_keys: 'state/\*' leaves the masks out"),
        ('save_ignore_keys', ['state/algorithms/TargetedPruning'], 'leaves the masks out .* remove it for pruning'),
        (
            'callbacks.export_pruned.folder',
            's3://bucket/x',
            'callbacks.export_pruned: folder: expected a folder on this',
        ),
        ('algorithms.targeted_pruning', 3, 'expected keys and values, got 3'),
        ('model.name', 'hf_causal_lm', 'needs model.name: sheared_causal_lm'),
        ('model.pretrained_name', 'x', "unknown key 'pretrained_name'"),
        ('model.pretrained_model_name_or_path', '/no/such/folder', '/no/such/folder is no Hugging Face model folder'),
        ('tokenizer.name', '/no/such/folder', 'tokenizer.name: /no/such/folder is no Hugging Face model folder'),
        ('precision', 'amp_bf16', 'precision: Composer trains in fp32 only on CPU'),
        ('device_train_microbatch_size', 'auto', 'device_train_microbatch_size: auto .* does not work on CPU'),
        ('optimizer.lr', 10**400, 'optimizer.lr: expected a number'),
        ('train_loader.num_workers', 10**9, 'train_loader.num_workers: expected a whole number from 0 to'),
        ('max_duration', '60sec', 'max_duration: expected a time in ep or ba or sp or tok'),
        ('loggers.console_progress', {'interval': '0ba'}, 'interval: expected a time above 0'),
        ('callbacks.export_pruned.folder', 'x/{run_name}', 'would be a name with braces'),
        ('max_duration', '-3ba', 'max_duration: expected a time above 0'),
        ('optimizer.lr', '1e-4', r"optimizer.lr: expected a number, got '1e-4'"),
        ('optimizer.lr', -1.0, 'optimizer.lr: expected a number of at least 0, got -1.0'),
        ('precision', 'amp_fp16', 'use amp_bf16 or fp32'),
        ('algorithms', None, 'export_pruned exports what algorithms.targeted_pruning learned'),
        ('callbacks.export_pruned.dtype_', 'x', "Did you mean 'dtype'"),
        ('callbacks.export_pruned.folder', KeyError, 'missing folder'),
        ('callbacks.dynamic_batch_loading.etaa', 1, "unknown key 'etaa'. Did you mean 'eta'"),
        ('train_loader.name', 'text', 'needs train_loader.name: dynamic_text'),
        (
            'callbacks.hf_checkpointer',
            {'save_folder': 'x', 'save_interval': '1dur'},
            'writes the uncut model, .* add callbacks.export_pruned',
        ),
        ('model.pretrained', False, 'leaves random weights'),
        ('compile_config', {}, 'a model that is being pruned is not compiled'),
        ('algorithms.targeted_pruning.warmup', '2dur', 'longer than the run.* give less than 1dur'),
        ('scheduler.t_warmup', '1.5dur', 'scheduler.t_warmup: 1.5dur is longer than the run'),
        ('scheduler.t_warmup', '3tok', 'scheduler.t_warmup: 3tok is in tok, and max_duration: 48ba'),
        (
            'eval_loaders.1.dataset.max_seq_len',
            8,
            r'eval_loader\[1\].dataset.max_seq_len: 8 is not the 256 of train_loader',
        ),
        (
            'eval_loaders.1.timeout',
            30,
            r'eval_loader\[1\].timeout: 30 is for workers, and num_workers: 0 starts none; set',
        ),
        ('eval_loaders.0.prefetch_factor', 2, r'eval_loader\[0\].prefetch_factor: 2 is for workers'),
        (
            'eval_loaders.0.persistent_workers',
            KeyError,
            r'eval_loader\[0\].persistent_workers: True is .* to false, or',
        ),
        ('max_seq_len', 128, 'train_loader.dataset.max_seq_len: 256 is not the max_seq_len: 128 of the run'),
        ('max_seq_len', 1, 'max_seq_len: expected a whole number of at least 2, got 1'),
        ('save_filename', '../x', 'save_filename: .* leads out of save_folder'),
        ('callbacks.speed_monitor', {'window_size': 0}, 'callbacks.speed_monitor.window_size: expected a number of'),
        ('icl_tasks', [{'label': 'x'}], r'icl_tasks\[0\]: missing dataset_uri, icl_task_type, num_fewshot'),
        (
            'icl_tasks',
            [{'label': 'x', 'dataset_uri': 'x', 'icl_task_type': 'multiple_choise', 'num_fewshot': [0]}],
            "Did you mean 'multiple_choice'",
        ),
        (
            'icl_tasks',
            [{'label': 'x', 'dataset_uri': '/no/x', 'icl_task_type': 'schema', 'num_fewshot': [0]}],
            'there is no file /no/x',
        ),
        (
            'icl_tasks',
            [{'label': 'x', 'dataset_uri': '/no/x', 'icl_task_type': 'schema', 'num_fewshot': 0}],
            r'icl_tasks\[0\].num_fewshot: expected a list',
        ),
        (
            'icl_tasks',
            [{'label': 'x', 'dataset_uri': __file__, 'icl_task_type': 'schema', 'num_fewshot': [0]}],
            'has no lines such as {context_options: ..., continuation: ..., gold: ...}',
        ),
        ('callbacks.generate_callback', {'prompts': [], 'interval': '1ba'}, 'expected at least one prompt'),
        ('callbacks.loss_perp_v_len', {}, 'callbacks.loss_perp_v_len: missing log_batch_interval'),
        ('callbacks.mono_checkpoint_saver', {'save_folder': 'x', 'batch_interval': 1}, 'needs FSDP1'),
        ('algorithms.alibi', {'max_sequence_length': 32}, 'algorithms.alibi replaces the positions of BERT'),
        (
            'callbacks.early_stopper',
            {'monitor': 'LanguageCrossEntropy', 'dataloader_label': 'pyton'},
            'early_stopper.dataloader_label: expected one of train, eval/python',
        ),
        ('train_loader.dataset', 3, 'train_loader.dataset: expected keys and values, got 3'),
        ('eval_gauntlet', {'weighting': 'EQUAL'}, 'eval_gauntlet averages the scores of icl_tasks, and there are none'),
        ('eval_gauntlet_str', 'x.yaml', 'eval_gauntlet_str averages the scores of icl_tasks'),
        ('save_folder', ' ', "save_folder: expected a folder, got ' '; leave it out"),
        ('load_path', '/no/such.pt', 'load_path: there is no /no/such.pt; name a checkpoint'),
        ('fsdp_config', {'activation_checkpoint': True}, "Did you mean 'activation_checkpointing'"),
        ('icl_tasks_str', '/no/such.yaml', 'icl_tasks: /no/such.yaml cannot be read'),
        (False, 1, 'the key False is read by YAML as bool, not as text; put it in quotes'),
    ],
)
def test_what_cannot_run_is_refused(config, path, value, message):
    with pytest.raises(ValueError, match=message):
        prepare_run(changed(config, path, value))


def test_an_evaluator_without_settings_is_refused(config):
    with pytest.raises(ValueError, match='eval_loader.name: '):
        prepare_run(changed(changed(config, 'eval_loaders', KeyError), 'eval_loader', {}))


PRUNING = 'algorithms.targeted_pruning'
WITHOUT_PRUNING = {PRUNING: KeyError, 'callbacks.export_pruned': KeyError}


@pytest.mark.parametrize(
    'mistake, advice, remedy',
    [
        (
            {'callbacks.hf_checkpointer': {'save_folder': 'x', 'save_interval': '1dur'}},
            'remove it and add callbacks.export_pruned',
            {'callbacks.hf_checkpointer': KeyError, 'callbacks.export_pruned': {'folder': 'runs/out'}},
        ),
        (
            {'callbacks.mono_checkpoint_saver': {'save_folder': 'x', 'batch_interval': 1}},
            'remove it and set save_folder and fsdp_config.state_dict_type: full',
            {
                'callbacks.mono_checkpoint_saver': KeyError,
                'save_folder': 'x',
                'fsdp_config': {'state_dict_type': 'full'},
            },
        ),
        (
            {f'{PRUNING}.freeze_weights': True, 'fsdp_config': {'state_dict_type': 'full'}},
            'set fsdp_config.state_dict_type: sharded',
            {'fsdp_config.state_dict_type': 'sharded'},
        ),
        (
            {'model.init_device': 'mixed', 'fsdp_config': None},
            'needs fsdp_config, .* without it use cpu',
            {'model.init_device': 'cpu'},
        ),
        ({'model.init_device': 'mixed', 'fsdp_config': None}, 'needs fsdp_config', {'fsdp_config': {'verbose': True}}),
        ({'model.init_device': 'meta'}, 'Without use cpu', {'model.init_device': 'cpu'}),
        (
            {'model.init_device': 'meta', 'fsdp_config': {'verbose': True}},
            'With fsdp_config use mixed',
            {'model.init_device': 'mixed'},
        ),
        ({'device_train_microbatch_size': 'auto'}, 'give a number', {'device_train_microbatch_size': 1}),
        ({'precision': 'amp_bf16'}, 'set fp32', {'precision': 'fp32'}),
        ({'precision': 'amp_fp16'}, 'use amp_bf16 or fp32', {'precision': 'fp32'}),
        (
            {f'{PRUNING}.mask_learning': 'one_shot', f'{PRUNING}.scores': None, f'{PRUNING}.compensate': False},
            'leave scores out',
            {f'{PRUNING}.scores': KeyError},
        ),
        (
            {f'{PRUNING}.compensate': True, f'{PRUNING}.fade': 0.5, f'{PRUNING}.mask_learning': 'lagrangian'},
            'use progressive or one_shot, fade: 0 and start_sparsity: 0',
            {f'{PRUNING}.fade': 0, f'{PRUNING}.start_sparsity': 0, f'{PRUNING}.mask_learning': 'progressive'},
        ),
        (
            {f'{PRUNING}.target': {'sparsity': 0.5}, 'callbacks.export_pruned': KeyError},
            'use lagrangian and expected',
            {f'{PRUNING}.mask_learning': 'lagrangian', f'{PRUNING}.eval_masks': 'expected'},
        ),
        (
            {f'{PRUNING}.warmup': '3ba', f'{PRUNING}.lagrangian_warmup': '2ba'},
            'remove lagrangian_warmup',
            {f'{PRUNING}.lagrangian_warmup': KeyError},
        ),
        ({f'{PRUNING}.warmup': '60sec'}, 'in one of ba, sp, tok, ep, dur', {f'{PRUNING}.warmup': '2ep'}),
        ({'save_weights_only': True}, 'set it to false', {'save_weights_only': False}),
        ({'model.config_overrides': {'hidden_size': 36}}, 'remove them here', {'model.config_overrides': KeyError}),
        (
            WITHOUT_PRUNING | {'callbacks.export_pruned': {'folder': 'x'}},
            'add that algorithm',
            {PRUNING: {'target': TARGET}},
        ),
        ({'model.name': 'hf_causal_lm'}, 'needs model.name: sheared', {'model.name': 'sheared_causal_lm'}),
        ({'train_subset_num_batches': 2}, 'remove it', {'train_subset_num_batches': KeyError}),
        ({'max_duration': '-3ba'}, 'a time above 0', {'max_duration': '3ba'}),
        (
            {'callbacks.export_pruned.folder': '~nobody-there/x'},
            'or ./~nobody-there/x',
            {'callbacks.export_pruned.folder': './~nobody-there/x'},
        ),
    ],
)
def test_the_advice_of_a_refusal_works(config, monkeypatch, mistake, advice, remedy):
    monkeypatch.delenv('FSDP_VERSION', raising=False)
    for path, value in mistake.items():
        config = changed(config, path, value)
    with pytest.raises(ValueError, match=advice):
        prepare_run(copy.deepcopy(config))
    for path, value in remedy.items():
        config = changed(config, path, value)
    prepare_run(config)


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
