"""What a refusal advises works."""

import copy

import pytest

from llmshearing.config.run import prepare_run
from tests.config.demo_run import TARGET, changed

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
            'remove it and set save_folder and, with fsdp_config, fsdp_config.state_dict_type: full',
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
