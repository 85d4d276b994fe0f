"""What any section of a run must satisfy, ours or not: a mistake ends in one message instead of a traceback.

llm-foundry hands most settings straight to constructors, whose own complaints range from clear to a ``TypeError`` in
the middle of building the trainer. Here each section is held against the signature of what it will build: the name is
registered, the keys exist, the required ones are there, the values are of the kind the annotation asks for. What is
cheap and has no effect outside is built once for its own checks of ranges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from llmshearing.config.loaders import check_dataset, check_workers
from llmshearing.config.parts import build_for_checks, constructor_of, eval_loaders, pruning_name
from llmshearing.config.ranges import check_ranges
from llmshearing.config.sharding import check_sharding
from llmshearing.config.tasks import check_tasks
from llmshearing.config.times import check_time, check_times, check_warmup
from llmshearing.utils.checks import check_integer, check_name, check_one_of, check_precision
from llmshearing.utils.settings import check_keys
from llmshearing.utils.suggestions import refuse_unknown

__all__ = ['check_config']

# Made by llm-foundry itself.
NOT_FOR_USERS = ('device_train_batch_size', 'device_train_grad_accum', 'n_gpus')
GIVEN_BY_LLMFOUNDRY = {
    'models': ('tokenizer',),
    'optimizers': ('params',),
    'dataloaders': ('tokenizer', 'device_batch_size'),
    'callbacks_with_config': ('train_config',),
}
BESIDE_CONSTRUCTOR = {'models': ('master_weights_dtype',), 'optimizers': ('param_groups', 'disable_grad')}
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')
BUILT_CALLBACKS = (
    'dynamic_batch_loading',
    'export_pruned',
    'lr_monitor',
    'memory_monitor',
    'model_card',
    'runtime_estimator',
    'speed_monitor',
)


def check_config(config: Mapping[str, Any]) -> None:
    """Checks the top level and every section that llm-foundry builds by name.

    Raises:
        ValueError: Naming the key, what it is, and what it could be.
    """
    _check_top_level(config)
    check_ranges(config)
    for key in ('tokenizer', 'model', 'optimizer', 'scheduler', 'train_loader'):
        check_name(f'{key}.name', config[key].get('name'))
    _check_tokenizer(config['tokenizer'])
    _check_section('model', config['model'], 'models')
    check_sharding(config)
    optimizer = _check_section('optimizer', config['optimizer'], 'optimizers')
    _build_optimizer(optimizer, config['optimizer'])
    scheduler = _check_section('scheduler', config['scheduler'], 'schedulers')
    build_for_checks('scheduler', scheduler, _without(config['scheduler'], 'name'))
    _check_section('train_loader', config['train_loader'], 'dataloaders')
    _check_eval_loaders(config)
    _check_algorithms(config.get('algorithms') or {})
    _check_callbacks(config)
    _check_loggers(config.get('loggers') or {})
    _check_profiler(config.get('profiler'))
    check_tasks(config)
    _check_compilation(config.get('compile_config'), pruning_name(config) is not None)


def _check_section(where: str, section: Mapping[str, Any], registry_name: str) -> Callable:
    """Checks a section whose ``name`` chooses what is built; returns that."""
    constructor = constructor_of(f'{where}.name', section['name'], registry_name)
    constructors = [constructor]
    if section['name'] == 'sheared_causal_lm':  # which passes further keys on
        from llmfoundry.models.hf import ComposerHFCausalLM

        constructors.append(ComposerHFCausalLM)
    check_keys(
        where,
        _without(section, 'name'),
        *constructors,
        given=GIVEN_BY_LLMFOUNDRY.get(registry_name, ()),
        more=BESIDE_CONSTRUCTOR.get(registry_name, ()),
    )
    if registry_name == 'dataloaders':
        check_dataset(f'{where}.dataset', section['name'], section['dataset'])
        check_workers(where, section)
    return constructor


def _check_entry(section: str, name: Any, settings: Any, *registry_names: str) -> Callable:
    constructor = constructor_of(section, name, *registry_names)
    given = GIVEN_BY_LLMFOUNDRY['callbacks_with_config'] if 'callbacks_with_config' in registry_names else ()
    check_keys(f'{section}.{name}', {} if settings is None else settings, constructor, given=given)
    return constructor


def _check_top_level(config: Mapping[str, Any]) -> None:
    from llmfoundry.utils.config_utils import TrainConfig
    from omegaconf import MISSING

    check_keys('configuration', config, TrainConfig, given=NOT_FOR_USERS)
    needed = [
        field.name
        for field in dataclasses.fields(TrainConfig)
        if field.default == MISSING and field.name not in NOT_FOR_USERS
    ]
    missing = [name for name in (*needed, 'global_train_batch_size') if config.get(name) is None]
    if missing:
        raise ValueError(f'configuration: missing {", ".join(missing)}.')
    _check_precision(config.get('precision', 'amp_bf16'))
    level = config.get('python_log_level')
    if level is not None:
        check_one_of('python_log_level', level.lower(), ('debug', 'info', 'warning', 'error', 'critical'))
    _check_microbatch(config.get('device_train_microbatch_size', 'auto'), config)
    check_time('max_duration', config['max_duration'], above_zero=True, units=('ep', 'ba', 'sp', 'tok'))
    saved_in = config.get('save_folder')
    if config.get('save_num_checkpoints_to_keep') == 0 and saved_in and '://' not in str(saved_in):
        raise ValueError(
            'save_num_checkpoints_to_keep: 0 removes every checkpoint from save_folder as soon as it is there; keep '
            'at least 1, or leave save_folder out.'
        )
    check_times(config)
    check_warmup(config['scheduler'], config['max_duration'])
    check_time('console_log_interval', config.get('console_log_interval', '1ba'), above_zero=True, units=('ep', 'ba'))


def _check_microbatch(size: Any, config: Mapping[str, Any]) -> None:
    if size == 'auto':
        if not torch.cuda.is_available():
            raise ValueError(
                "device_train_microbatch_size: auto finds what fits into a GPU's memory and does not work on CPU; "
                'give a number, for example 1.'
            )
        if config.get('fsdp_config'):
            raise ValueError(
                'device_train_microbatch_size: auto, which is also the default, does not work under FSDP2 (Composer); '
                'give a number, for example 1.'
            )
        return
    check_integer('device_train_microbatch_size', size, least=1)


def _check_tokenizer(settings: Mapping[str, Any]) -> None:
    refuse_unknown('tokenizer', settings, ('name', 'kwargs'))
    if not isinstance(settings.get('kwargs', {}), Mapping):
        raise ValueError(f'tokenizer.kwargs: expected keys and values, got {settings["kwargs"]!r}.')


def _check_eval_loaders(config: Mapping[str, Any]) -> None:
    for where, loader in eval_loaders(config):
        check_name(f'{where}.name', loader.get('name'))
        _check_section(where, _without(loader, 'label'), 'dataloaders')
    labels = [loader.get('label') for loader in config.get('eval_loaders') or []]
    for number, label in enumerate(labels):
        check_name(f'eval_loader[{number}].label', label)
        if labels.index(label) != number:
            raise ValueError(f'eval_loader[{number}].label: {label!r} is the label of another one already.')


def _check_algorithms(algorithms: Mapping[str, Any]) -> None:
    from llmshearing.algorithms.targeted_pruning.settings import PruningSettings

    for name, settings in algorithms.items():
        algorithm = _check_entry('algorithms', name, settings, 'algorithms')
        checked = PruningSettings if name == 'targeted_pruning' else algorithm
        build_for_checks(f'algorithms.{name}', checked, settings or {})
        if name == 'alibi':
            raise ValueError(
                "algorithms.alibi replaces the positions of BERT and GPT-2 alone, and fails with llm-foundry's "
                'batches; remove it.'
            )
        if name == 'gradient_clipping':
            check_one_of(f'algorithms.{name}.clipping_type', settings['clipping_type'], ('norm', 'value', 'adaptive'))


def _check_callbacks(config: Mapping[str, Any]) -> None:
    for name, settings in (config.get('callbacks') or {}).items():
        callback = _check_entry('callbacks', name, settings, 'callbacks', 'callbacks_with_config')
        if name in BUILT_CALLBACKS:
            build_for_checks(f'callbacks.{name}', callback, settings or {})
        if name == 'early_stopper':
            _check_monitored(settings, config)
        if name == 'generate_callback' and not settings['prompts']:
            raise ValueError('callbacks.generate_callback.prompts: expected at least one prompt, got none.')
        if name == 'hf_checkpointer':
            precision = (settings or {}).get('precision', 'float32')
            check_one_of(f'callbacks.{name}.precision', precision, ('float32', 'float16', 'bfloat16'))


def _check_loggers(loggers: Mapping[str, Any]) -> None:
    for name, settings in loggers.items():
        logger = _check_entry('loggers', name, settings, 'loggers')
        if name in ('metrics_file', 'console_progress'):
            build_for_checks(f'loggers.{name}', logger, settings or {})


def _check_monitored(settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Composer looks for evaluator and metric only when the evaluator has run."""
    labels = [f'eval/{loader["label"]}' for loader in config.get('eval_loaders') or []]
    possible = ['train', *(labels or ['eval'])]
    check_one_of('callbacks.early_stopper.dataloader_label', settings['dataloader_label'], possible)
    _check_metric(settings, config['model'])
    if settings.get('patience') is not None:
        check_time('callbacks.early_stopper.patience', settings['patience'], units=('ep', 'ba'))


def _check_metric(settings: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    from llmfoundry.eval.metrics.nlp import InContextLearningMetric
    from llmfoundry.models.hf.hf_base import BaseHuggingFaceModel

    constructor = constructor_of('model.name', model['name'], 'models')
    if not (isinstance(constructor, type) and issubclass(constructor, BaseHuggingFaceModel)):
        return  # which metrics another kind of model has is known once it is built
    keys = ('additional_train_metrics', 'additional_eval_metrics')
    train, evaluation = constructor.build_metrics(
        model.get('use_train_metrics', True), *(list(model.get(key) or []) for key in keys)
    )
    trains = settings['dataloader_label'] == 'train'
    metrics = train if trains else [one for one in evaluation if not isinstance(one, InContextLearningMetric)]
    names = [type(metric).__name__ for metric in metrics]
    if not names:
        raise ValueError(
            'callbacks.early_stopper.dataloader_label: the model computes no metrics on training batches; name an '
            f'evaluation loader, or one of the metrics under model.{keys[0]}.'
        )
    check_one_of('callbacks.early_stopper.monitor', settings['monitor'], names)


def _build_optimizer(optimizer: Callable, settings: Mapping[str, Any]) -> None:
    if settings.get('param_groups') is None and settings.get('disable_grad') is None:
        build_for_checks(
            'optimizer', optimizer, {**_without(settings, 'name'), 'params': [torch.nn.Parameter(torch.zeros(1))]}
        )


def _check_precision(precision: Any) -> None:
    from composer.core import Precision

    check_one_of('precision', precision, [precision.value for precision in Precision])
    check_precision(precision)
    if precision != 'fp32' and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ValueError(
            f'precision: Composer trains in fp32 only on CPU, got {precision!r}; set fp32 (on GPUs amp_bf16 or fp32).'
        )


def _check_compilation(settings: Mapping[str, Any] | None, is_pruning: bool) -> None:
    if settings is None:
        return
    if is_pruning:
        raise ValueError(
            'compile_config: a model that is being pruned is not compiled, since its tensors change their shape from '
            'batch to batch; remove it for this stage.'
        )
    check_keys('compile_config', settings, torch.compile, given=('model',))
    if settings.get('mode') is not None:
        check_one_of('compile_config.mode', settings['mode'], COMPILE_MODES)
    if settings.get('backend') is not None:
        check_one_of('compile_config.backend', settings['backend'], torch.compiler.list_backends())


def _check_profiler(settings: Mapping[str, Any] | None) -> None:
    from composer.profiler import JSONTraceHandler, Profiler, cyclic_schedule

    if not settings:
        return
    check_keys('profiler', settings, Profiler, given=('trace_handlers',), more=('json_trace_handler',))
    check_keys('profiler.schedule', settings['schedule'], cyclic_schedule)
    check_keys('profiler.json_trace_handler', settings.get('json_trace_handler') or {}, JSONTraceHandler)


def _without(settings: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}
