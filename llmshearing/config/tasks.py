"""``icl_tasks``: tasks that llm-foundry evaluates while training, which it checks by assertions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.config.parts import constructor_of
from llmshearing.config.yaml_file import read_yaml
from llmshearing.utils.checks import check_integer, check_name
from llmshearing.utils.settings import check_keys

__all__ = ['check_tasks']

# What an example of each kind of task has, of those whose data sets ask for more than llm-foundry says.
ROWS = {
    'language_modeling': ('context', 'continuation'),
    'multiple_choice': ('query', 'choices', 'gold'),
    'schema': ('context_options', 'continuation', 'gold'),
    'generation_task_with_answers': ('context', 'answer'),
}
GIVEN = ('tokenizer', 'pad_tok_id', 'destination_path')
# Read by llm-foundry beside what the data set takes.
BESIDE = ('label', 'icl_task_type', 'metric_names', 'batch_size', 'has_categories', 'question_prelimiter')


def check_tasks(config: Mapping[str, Any]) -> None:
    """Checks every task of ``icl_tasks``, written out or in a file of its own.

    Raises:
        ValueError: Naming the task and the key.
    """
    tasks, where = config.get('icl_tasks'), 'icl_tasks'
    if config.get('icl_tasks_str') is not None:
        tasks, where = _read_tasks(config['icl_tasks_str']), config['icl_tasks_str']
    for key in ('eval_gauntlet', 'eval_gauntlet_str'):
        if config.get(key) is not None and not tasks:
            raise ValueError(f'{key} averages the scores of icl_tasks, and there are none; add them, or remove it.')
    for number, task in enumerate(tasks or []):
        _check_task(f'{where}[{number}]', task)


def _read_tasks(path: str) -> Any:
    content = read_yaml(f'icl_tasks: {path} cannot be read', path)
    tasks = content.get('icl_tasks') if isinstance(content, dict) else None
    if not isinstance(tasks, list):
        raise ValueError(f'icl_tasks: {path} holds no list `icl_tasks`.')
    return tasks


def _check_task(where: str, task: Any) -> None:
    from llmfoundry.eval.datasets.in_context_learning_evaluation import InContextLearningDataset

    if not isinstance(task, Mapping):
        raise ValueError(f'{where}: expected keys and values, got {task!r}.')
    missing = [key for key in ('label', 'dataset_uri', 'icl_task_type', 'num_fewshot') if task.get(key) is None]
    if missing:
        raise ValueError(f'{where}: missing {", ".join(missing)}.')
    check_name(f'{where}.label', task['label'])
    dataset = constructor_of(f'{where}.icl_task_type', task['icl_task_type'], 'icl_datasets')
    settings = {'max_seq_len': 1, **task, 'num_fewshot': 0}
    check_keys(where, settings, dataset, InContextLearningDataset, given=GIVEN, more=BESIDE)
    if not isinstance(task['num_fewshot'], (list, tuple)):
        raise ValueError(f'{where}.num_fewshot: expected a list of whole numbers, got {task["num_fewshot"]!r}.')
    for count in task['num_fewshot']:
        check_integer(f'{where}.num_fewshot', count, least=0)
    place = str(task['dataset_uri'])
    if '://' not in place:
        _check_rows(f'{where}.dataset_uri', Path(place), ROWS.get(task['icl_task_type'], ()))


def _check_rows(where: str, path: Path, keys: tuple[str, ...]) -> None:
    """The first example of a local file has the keys that its kind of task reads."""
    if not path.is_file():
        raise ValueError(f'{where}: there is no file {path}.')
    with path.open(encoding='utf-8', errors='replace') as file:
        first = file.readline()
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    missing = [key for key in keys if not isinstance(row, dict) or key not in row]
    if missing:
        raise ValueError(
            f'{where}: {path} has no lines such as {{{", ".join(f"{key}: ..." for key in keys)}}}; the first is '
            f'{first[:80]!r}.'
        )
