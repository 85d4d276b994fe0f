"""What cannot run is refused: what was got, what is possible, what to change."""

import pytest

from llmshearing.config.run import prepare_run
from tests.config.demo_run import changed


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
        ('model.peft_config', {'peft_type': 'LORA'}, 'model.peft_config: an adapter .* with model.name: hf_causal_lm'),
        ('model.pretrained_lora_id_or_path', 'x', 'model.pretrained_lora_id_or_path: an adapter'),
        ('callbacks.loss_perp_v_len', {}, 'callbacks.loss_perp_v_len: missing log_batch_interval'),
        ('callbacks.mono_checkpoint_saver', {'save_folder': 'x', 'batch_interval': 1}, 'needs FSDP1'),
        ('algorithms.alibi', {'max_sequence_length': 32}, 'algorithms.alibi replaces the positions of BERT'),
        (
            'callbacks.early_stopper',
            {'monitor': 'LanguageCrossEntropy', 'dataloader_label': 'pyton'},
            'early_stopper.dataloader_label: expected one of train, eval/python',
        ),
        (
            'callbacks.early_stopper',
            {'monitor': 'loss', 'dataloader_label': 'eval/python'},
            "early_stopper.monitor: expected one of LanguageCrossEntropy, LanguagePerplexity, got 'loss'",
        ),
        (
            'callbacks.early_stopper',
            {'monitor': 'LanguageCrossEntropy', 'dataloader_label': 'train'},
            'early_stopper.dataloader_label: the model computes no metrics on training batches',
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
