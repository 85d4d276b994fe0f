"""``distillation: {stored: true}`` and the loader that serves what is stored: one follows from the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ['check_stored_teacher', 'serve_stored_teacher']


def serve_stored_teacher(config: dict[str, Any]) -> None:
    """Lets the training loader serve the teacher's column where distillation asks for it, unless the user decided.

    Args:
        config (dict[str, Any]): A whole llm-foundry training configuration, whatever is wrong with it.
    """
    loader = config.get('train_loader')
    if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict):
        return
    if _uses_stored_teacher(config) and loader.get('name') == 'dynamic_text':
        loader['dataset'].setdefault('teacher', True)


def check_stored_teacher(config: Mapping[str, Any]) -> None:
    """Refuses distillation from what no loader serves, and a loader that serves what nothing uses.

    Args:
        config (Mapping[str, Any]): A whole llm-foundry training configuration whose keys have been checked.

    Raises:
        ValueError: Naming the key to change.
    """
    loader, asks = config['train_loader'], _uses_stored_teacher(config)
    if asks and loader['name'] != 'dynamic_text':
        raise ValueError(
            f'algorithms.distillation.stored: true needs train_loader.name: dynamic_text, got {loader["name"]!r}.'
        )
    serves = loader['name'] == 'dynamic_text' and bool(loader['dataset'].get('teacher'))
    if asks and not serves:
        raise ValueError(
            'algorithms.distillation.stored: true needs train_loader.dataset.teacher: true, got false; remove that key.'
        )
    if serves and not asks:
        raise ValueError(
            'train_loader.dataset.teacher: true serves what only algorithms.distillation.stored: true uses; set that, '
            'or remove the key.'
        )


def _uses_stored_teacher(config: Mapping[str, Any]) -> bool:
    algorithms = config.get('algorithms')
    settings = algorithms.get('distillation') if isinstance(algorithms, Mapping) else None
    return isinstance(settings, Mapping) and settings.get('stored') is True
