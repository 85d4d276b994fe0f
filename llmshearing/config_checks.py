"""What any section of a run must satisfy, ours or not, so that a mistake ends in one message instead of a library's traceback.

llm-foundry hands most settings straight to constructors, whose own complaints range from clear to a ``TypeError`` in the middle of
building the trainer. Here each section is held against the signature of what it will build: the name is registered, the keys
exist, the required ones are there, the values are of the kind the annotation asks for. What is cheap and has no effect outside is
built once for its own checks of ranges.
"""
from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Optional

from llmshearing.config_types import misfit, parameters_of, takes_any_key

__all__ = ['built', 'check_config', 'check_keys', 'check_local_folder', 'check_section', 'check_time', 'constructor_of', 'refuse_unknown']

# Made by llm-foundry itself.
NOT_FOR_USERS = ('device_train_batch_size', 'device_train_grad_accum', 'n_gpus')
WHOLE_FROM_ONE = ('max_seq_len', 'global_train_batch_size', 'device_eval_batch_size')
ALL_OR_COUNT = ('train_subset_num_batches', 'eval_subset_num_batches', 'icl_subset_num_batches')
# Annotated as a whole number by llm-foundry, whose loaders need null where there are no workers.
MAY_BE_NULL = ('prefetch_factor',)
GIVEN_BY_LLMFOUNDRY = {
    'models': ('tokenizer',),
    'optimizers': ('params',),
    'dataloaders': ('tokenizer', 'device_batch_size'),
    'callbacks_with_config': ('train_config',),
}
BESIDE_CONSTRUCTOR = {'models': ('master_weights_dtype',), 'optimizers': ('param_groups', 'disable_grad')}
BUILT_CALLBACKS = ('dynamic_batch_loading', 'export_pruned', 'lr_monitor', 'memory_monitor', 'runtime_estimator', 'speed_monitor')


def check_config(config: Mapping[str, Any]) -> None:
    """Checks the top level and every section that llm-foundry builds by name.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration.

    Raises:
        ValueError: Naming the key, what it is, and what it could be.
    """
    _check_top_level(config)
    for key in ('tokenizer', 'model', 'optimizer', 'scheduler', 'train_loader'):
        _text(f'{key}.name', config[key].get('name'))
    _check_tokenizer(config['tokenizer'])
    check_section('model', config['model'], 'models')
    _check_init_device(config['model'], config.get('fsdp_config'))
    optimizer = check_section('optimizer', config['optimizer'], 'optimizers')
    _build_optimizer(optimizer, config['optimizer'])
    scheduler = check_section('scheduler', config['scheduler'], 'schedulers')
    built('scheduler', scheduler, _without(config['scheduler'], 'name'))
    check_section('train_loader', config['train_loader'], 'dataloaders')
    for number, loader in enumerate(_eval_loaders(config)):
        where = f'eval_loader[{number}]' if config.get('eval_loaders') else 'eval_loader'
        _text(f'{where}.name', loader.get('name'))
        check_section(where, {key: value for key, value in loader.items() if key != 'label'}, 'dataloaders')
    _check_labels(config)
    for name, settings in (config.get('algorithms') or {}).items():
        algorithm = _check_entry('algorithms', name, settings, 'algorithms')
        built(f'algorithms.{name}', algorithm, settings or {})
    for name, settings in (config.get('callbacks') or {}).items():
        callback = _check_entry('callbacks', name, settings, 'callbacks', 'callbacks_with_config')
        if name in BUILT_CALLBACKS:
            built(f'callbacks.{name}', callback, settings or {})
        if name == 'hf_checkpointer':
            _one_of(f'callbacks.{name}.precision', (settings or {}).get('precision', 'float32'), ('float32', 'float16', 'bfloat16'))
            check_time(f'callbacks.{name}.save_interval', settings['save_interval'])
    for name, settings in (config.get('loggers') or {}).items():
        _check_entry('loggers', name, settings, 'loggers')
    _check_profiler(config.get('profiler'))


def check_keys(where: str, settings: Any, *constructors: Callable, given: Iterable[str] = (), more: Iterable[str] = ()) -> None:
    """Refuses keys that no constructor takes, missing required ones, and values of another kind than the annotation.

    Args:
        where (str): Place in the configuration, for the message.
        settings (Any): What stands there.
        *constructors (Callable): Classes or functions whose parameters may be set; the first that has a parameter decides.
        given (Iterable[str]): Parameters that come from elsewhere and cannot be set.
        more (Iterable[str]): Keys that are allowed besides.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f'{where}: expected keys and values, got {settings!r}.')
    parameters: dict[str, tuple[Any, bool]] = {}
    for constructor in constructors:
        parameters = {**parameters_of(constructor), **parameters}
    parameters = {name: parameter for name, parameter in parameters.items() if name not in given}
    if not all(map(takes_any_key, constructors[-1:])):
        refuse_unknown(where, settings, [*parameters, *more])
    missing = [name for name, (_, needed) in parameters.items() if needed and name not in settings]
    if missing:
        raise ValueError(f'{where}: missing {", ".join(missing)}.')
    for key, value in settings.items():
        annotation, _ = parameters.get(key, (Any, False))
        expected = None if value is None and key in MAY_BE_NULL else misfit(value, annotation)
        if expected is not None:
            raise ValueError(f'{where}.{key}: expected {expected}, got {value!r}.')


def refuse_unknown(where: str, settings: Mapping[Any, Any], possible: Iterable[str]) -> None:
    """Raises a ValueError for a key that is not possible, with the nearest one that is."""
    possible = list(possible)
    for key in settings:
        if key not in possible:
            near = difflib.get_close_matches(str(key), possible, 1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'{where}: unknown key {key!r}.{hint} Possible: {", ".join(possible)}.')


def check_section(where: str, section: Mapping[str, Any], registry_name: str) -> Callable:
    """Checks a section whose ``name`` chooses what is built; returns that."""
    constructor = constructor_of(f'{where}.name', section['name'], registry_name)
    check_keys(
        where,
        _without(section, 'name'),
        *_constructors(constructor, section['name']),
        given=GIVEN_BY_LLMFOUNDRY.get(registry_name, ()),
        more=BESIDE_CONSTRUCTOR.get(registry_name, ()),
    )
    if registry_name == 'dataloaders':
        _check_loader(where, section)
    return constructor


def constructor_of(where: str, name: Any, *registry_names: str) -> Callable:
    """What llm-foundry would build for a name.

    Raises:
        ValueError: If nothing is registered under it, with the nearest names.
    """
    from llmfoundry import registry
    registries = [getattr(registry, registry_name) for registry_name in registry_names]
    for entries in registries:
        if isinstance(name, str) and name in entries:
            return entries.get(name)
    known = sorted({known for entries in registries for known in entries.get_all()})
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(f'{where}: there is no {name!r}.{hint} Possible: {", ".join(known)}.')


def built(where: str, constructor: Callable, settings: Mapping[str, Any]) -> Any:
    """Builds something that has no effect outside, for its own checks.

    Raises:
        ValueError: With the place in the configuration before the constructor's message.
    """
    try:
        return constructor(**settings)
    except (TypeError, ValueError, OverflowError, NotImplementedError, OSError) as error:
        raise ValueError(f'{where}: {error}') from error


def check_local_folder(where: str, name: str, file: str) -> None:
    """Refuses a path that is no folder with ``file``; a name of a hub passes."""
    looks_local = name.startswith(('/', '.', '~')) or name.count('/') != 1 or Path(name).is_dir()
    if looks_local and '/' not in name and not Path(name).is_dir():
        looks_local = False  # a hub name without an organisation
    if looks_local and not (Path(name) / file).is_file():
        raise ValueError(f'{where}: {name} is no Hugging Face model folder (no {file} there).')


def _constructors(constructor: Callable, name: str) -> tuple[Callable, ...]:
    """The constructor and, where it passes further keys on, what it passes them to."""
    if name == 'sheared_causal_lm':
        from llmfoundry.models.hf import ComposerHFCausalLM
        return constructor, ComposerHFCausalLM
    return (constructor,)


def _check_entry(section: str, name: Any, settings: Any, *registry_names: str) -> Callable:
    constructor = constructor_of(section, name, *registry_names)
    given = GIVEN_BY_LLMFOUNDRY['callbacks_with_config'] if 'callbacks_with_config' in registry_names else ()
    check_keys(f'{section}.{name}', {} if settings is None else settings, constructor, given=given)
    return constructor


def _check_top_level(config: Mapping[str, Any]) -> None:
    from composer.core import Precision
    from llmfoundry.utils.config_utils import TrainConfig
    check_keys('configuration', config, TrainConfig, given=NOT_FOR_USERS)
    if config.get('global_train_batch_size') is None:
        raise ValueError('configuration: missing global_train_batch_size.')
    for key in WHOLE_FROM_ONE:
        _whole(key, config[key], least=1)
    for key in ALL_OR_COUNT:
        if config.get(key) is not None and config[key] != -1:
            _whole(key, config[key], least=1)
    _whole('seed', config.get('seed', 17), least=0, most=2**32 - 1)
    _whole('save_num_checkpoints_to_keep', config.get('save_num_checkpoints_to_keep', -1), least=-1)
    if not config.get('dist_timeout', 600) > 0:
        raise ValueError(f'dist_timeout: expected a number of seconds above 0, got {config["dist_timeout"]!r}.')
    _one_of('precision', config.get('precision', 'amp_bf16'), [precision.value for precision in Precision])
    level = config.get('python_log_level')
    if level is not None:
        _one_of('python_log_level', level.lower(), ('debug', 'info', 'warning', 'error', 'critical'))
    _check_microbatch(config.get('device_train_microbatch_size', 'auto'), config)
    check_time('max_duration', config['max_duration'], above_zero=True, units=('ep', 'ba', 'sp', 'tok', 'sec'))
    for key in ('eval_interval', 'save_interval'):
        check_time(key, config.get(key, 1))
    check_time('console_log_interval', config.get('console_log_interval', '1ba'), above_zero=True, units=('ep', 'ba'))
    _check_fsdp(config.get('fsdp_config'))


def _check_microbatch(size: Any, config: Mapping[str, Any]) -> None:
    import torch
    if size == 'auto':
        if not torch.cuda.is_available():
            raise ValueError(
                'device_train_microbatch_size: auto finds what fits into a GPU\'s memory and does not work on CPU; give a number, for '
                'example 1.',
            )
        return
    _whole('device_train_microbatch_size', size, least=1)


def _check_fsdp(settings: Optional[Mapping[str, Any]]) -> None:
    """Types of the keys that FSDP2 has; those of FSDP1 are let through, since Composer warns of them and ignores them."""
    from composer.utils.parallelism import FSDP2Config, FSDPConfig
    if not settings:
        return
    check_keys('fsdp_config', settings, FSDP2Config, FSDPConfig, more=('load_planner', 'save_planner'))
    _one_of('fsdp_config.state_dict_type', settings.get('state_dict_type', 'full'), ('full', 'sharded'))
    if isinstance(settings.get('mixed_precision'), str):
        _one_of('fsdp_config.mixed_precision', settings['mixed_precision'], ('DEFAULT', 'PURE', 'FULL'))


def _check_init_device(model: Mapping[str, Any], fsdp_config: Optional[Mapping[str, Any]]) -> None:
    device = model.get('init_device', 'cpu')
    _one_of('model.init_device', device, ('cpu', 'mixed', 'meta'))
    if device == 'mixed' and (not fsdp_config or int(os.environ.get('WORLD_SIZE', 1)) == 1):
        raise ValueError('model.init_device: mixed needs fsdp_config and more than one process; with one process use cpu.')


def _check_tokenizer(settings: Mapping[str, Any]) -> None:
    refuse_unknown('tokenizer', settings, ('name', 'kwargs'))
    if not isinstance(settings.get('kwargs', {}), Mapping):
        raise ValueError(f'tokenizer.kwargs: expected keys and values, got {settings["kwargs"]!r}.')


def _check_loader(where: str, section: Mapping[str, Any]) -> None:
    _whole(f'{where}.num_workers', section.get('num_workers', 0), least=0)
    dataset = section['dataset']
    if section['name'] == 'dynamic_text':
        from llmshearing.data.dynamic_dataset import DynamicTextDataset
        from llmshearing.data.dynamic_text import dataset_keys
        from llmfoundry.data.text_data import StreamingTextDataset
        refuse_unknown(f'{where}.dataset', dataset, [*dataset_keys(), 'shuffle'])
        check_keys(f'{where}.dataset', dataset, DynamicTextDataset, StreamingTextDataset, given=('tokenizer', 'batch_size'))
    elif section['name'] == 'text':
        from llmfoundry.data.text_data import StreamingTextDataset
        check_keys(f'{where}.dataset', dataset, StreamingTextDataset, given=('tokenizer', 'batch_size'))
        _check_text_folder(f'{where}.dataset', dataset)
    elif section['name'] == 'finetuning':
        _whole(f'{where}.dataset.max_seq_len', dataset.get('max_seq_len'), least=1)


def _check_text_folder(where: str, dataset: Mapping[str, Any]) -> None:
    """The index of a local split is there and stays in its folder; what is remote is only known once it is fetched."""
    from llmshearing.safe_paths import check_mds_index
    _whole(f'{where}.max_seq_len', dataset['max_seq_len'], least=1)
    if dataset.get('remote') or dataset.get('streams'):
        return
    if not dataset.get('local'):
        raise ValueError(f'{where}: missing local, the folder of the prepared split.')
    index = Path(dataset['local'], dataset.get('split') or '', 'index.json')
    if not index.is_file():
        raise ValueError(f'{where}.local: {index.parent} is no prepared split (no index.json there).')
    check_mds_index(index)


def _eval_loaders(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return config.get('eval_loaders') or ([config['eval_loader']] if config.get('eval_loader') else [])


def _check_labels(config: Mapping[str, Any]) -> None:
    labels = [loader.get('label') for loader in config.get('eval_loaders') or []]
    for number, label in enumerate(labels):
        _text(f'eval_loader[{number}].label', label)
        if labels.index(label) != number:
            raise ValueError(f'eval_loader[{number}].label: {label!r} is the label of another one already.')


def _build_optimizer(optimizer: Callable, settings: Mapping[str, Any]) -> None:
    import torch
    if settings.get('param_groups') is None and settings.get('disable_grad') is None:
        built('optimizer', optimizer, {**_without(settings, 'name'), 'params': [torch.nn.Parameter(torch.zeros(1))]})


def _check_profiler(settings: Optional[Mapping[str, Any]]) -> None:
    from composer.profiler import JSONTraceHandler, Profiler, cyclic_schedule
    if not settings:
        return
    check_keys('profiler', settings, Profiler, given=('trace_handlers',), more=('json_trace_handler',))
    check_keys('profiler.schedule', settings['schedule'], cyclic_schedule)
    check_keys('profiler.json_trace_handler', settings.get('json_trace_handler') or {}, JSONTraceHandler)


def check_time(key: str, value: Any, above_zero: bool = False, units: tuple[str, ...] = ()) -> None:
    """Refuses what is no time, is below zero, or has a unit that does not work there."""
    from composer.core import Time, TimeUnit
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f'{key}: expected a time such as 100ba, 1ep or 0.1dur, got {value!r}.')
    try:
        time = Time.from_input(value, TimeUnit.EPOCH)
    except (ValueError, OverflowError) as error:
        raise ValueError(f'{key}: expected a time such as 100ba, 1ep or 0.1dur, got {value!r} ({error}).') from error
    if time.value < 0 or (above_zero and time.value == 0):
        raise ValueError(f'{key}: expected a time {"above" if above_zero else "of at least"} 0, got {value!r}.')
    if units and time.unit.value not in units:
        raise ValueError(f'{key}: expected a time in {" or ".join(units)}, got {value!r}.')


def _whole(key: str, value: Any, least: int, most: Optional[int] = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f'of at least {least}' if most is None else f'from {least} to {most}'
        raise ValueError(f'{key}: expected a whole number {limits}, got {value!r}.')


def _one_of(key: str, value: Any, possible: Iterable[str]) -> None:
    if value not in possible:
        raise ValueError(f'{key}: expected one of {", ".join(possible)}, got {value!r}.')


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f'{key}: expected a name, got {value!r}.')


def _without(settings: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}
