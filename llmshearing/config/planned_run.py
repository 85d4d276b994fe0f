"""What ``llmshearing plan --config RUN.yaml`` takes from a run's file: source, target and training settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.config.source import read_source
from llmshearing.config.yaml_file import read_yaml

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['read_planned_run', 'read_teacher']


def read_planned_run(path: str) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """Source, target and training settings of a pruning run's YAML.

    Among the settings are ``freeze_weights``, ``compensate``, the name of the ``teacher`` and ``notes`` on settings
    that the estimate leaves out.

    Raises:
        ValueError: If it is no such YAML.
    """
    if not Path(path).is_file():
        raise ValueError(f'--config: {path}: no such file')
    run = read_yaml(f'--config: {path}', path)
    if not isinstance(run, dict):
        raise ValueError(f'--config: {path} must be a mapping of keys to values, got {type(run).__name__}')
    algorithms = _section(run, 'algorithms', path)
    pruning = _section(algorithms, 'algorithms.targeted_pruning', path)
    target = _section(pruning, 'algorithms.targeted_pruning.target', path)
    if not target:
        raise ValueError(f'--config: {path} has no algorithms.targeted_pruning.target; name a run of the pruning stage')
    fsdp = _section(run, 'fsdp_config', path)
    micro_batch = run.get('device_train_microbatch_size')
    settings = {
        'sharding': 'fsdp2' if fsdp else 'ddp',
        'activation_checkpointing': _switch(fsdp, 'fsdp_config.activation_checkpointing', path),
        'micro_batch': micro_batch if isinstance(micro_batch, int) else None,  # 'auto' is found by the run itself
        'seq_len': run.get('max_seq_len'),
        'precision': run.get('precision'),
        'freeze_weights': _switch(pruning, 'algorithms.targeted_pruning.freeze_weights', path),
        'compensate': _switch(pruning, 'algorithms.targeted_pruning.compensate', path)
        and pruning.get('mask_learning') != 'one_shot',  # which compensates before there are gradients
        'teacher': _section(algorithms, 'algorithms.distillation', path).get('teacher'),
        'notes': [],
    }
    if _switch(fsdp, 'fsdp_config.activation_cpu_offload', path):
        settings['notes'].append('activation_cpu_offload: activations are counted as if they stayed on the GPU.')
    source = _section(run, 'model', path).get('pretrained_model_name_or_path')
    if source is not None and not isinstance(source, str):
        raise ValueError(f'--config: {path}: model.pretrained_model_name_or_path must be a path, got {source!r}')
    return source, target, settings


def read_teacher(
    name: Any, source_of_run: str | None, source: PretrainedConfig, notes: list[str]
) -> PretrainedConfig | None:
    """The config of a run's teacher, which is the source mostly; adds a note where it cannot be counted.

    Args:
        name (Any): The teacher as the run names it; None where it has none.
        source_of_run (str | None): The source as the run names it.
        source (PretrainedConfig): The source's config.
        notes (list[str]): Where a note is added.
    """
    if name is None:
        return None
    if name == source_of_run:
        return source
    from llmshearing.models.counting import layout_of

    try:
        teacher = read_source(str(name))
        layout_of(teacher)  # of a family that can be counted
    except ValueError as error:
        notes.append(f'distillation: the teacher is not counted: {str(error).rstrip(".")}.')
        return None
    return teacher


def _section(parent: Mapping[Any, Any], key: str, path: str) -> dict[str, Any]:
    """A mapping in a run's YAML; empty where it is left out.

    Raises:
        ValueError: It is something else.
    """
    value = parent.get(key.rpartition('.')[2])
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f'--config: {path}: {key} must be a mapping of keys to values, got {value!r}')
    return value


def _switch(section: dict[str, Any], key: str, path: str) -> bool:
    """A key that is true or false; false where it is left out.

    Raises:
        ValueError: It is something else, such as text.
    """
    value = section.get(key.rpartition('.')[2])
    if value is not None and not isinstance(value, bool):
        raise ValueError(f'--config: {path}: {key} must be true or false, without quotes, got {value!r}')
    return bool(value)
