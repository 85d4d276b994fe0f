"""Keys of a run's YAML that messages name are there, in the parts that they name."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from llmfoundry import registry

import llmshearing
from llmshearing.algorithms.targeted_pruning.settings import PruningSettings
from llmshearing.data.dynamic_text import build_dynamic_text_dataloader, dataset_keys
from tests.commands.test_advised_options import strings

PACKAGE = Path(llmshearing.__file__).parent
PARTS = {'algorithms': registry.algorithms, 'callbacks': registry.callbacks, 'loggers': registry.loggers}
KEY = re.compile(r'(?<![\w./-])(algorithms|callbacks|loggers|train_loader)\.(\w+)(?:\.(\w+))?(?![\w{])')


def parameters(of) -> set[str]:
    return set(inspect.signature(of).parameters)


def part_of(section: str, name: str) -> Any:
    """The class that ``section.name`` builds, or ``None``."""
    with_config = registry.callbacks_with_config.get_all() if section == 'callbacks' else {}
    return {**with_config, **PARTS[section].get_all()}.get(name)


def keys_of(section: str, name: str) -> set[str]:
    """What may stand under ``section.name``; empty where ``name`` itself may not."""
    if section == 'train_loader':
        return {'dataset': set(dataset_keys())}.get(name, parameters(build_dynamic_text_dataloader))
    keys = parameters(part_of(section, name))
    return keys | parameters(PruningSettings) if name == 'targeted_pruning' else keys


def messages(path: Path) -> list[str]:
    """The texts of a module without its docstrings."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    docstrings = {
        node.body[0].value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False)
    }
    return [text for text in strings(tree) if text not in docstrings]


NAMED = sorted({key for path in PACKAGE.rglob('*.py') for text in messages(path) for key in KEY.findall(text)})


def test_messages_name_keys():
    assert len(NAMED) > 20


@pytest.mark.parametrize('section, name, key', NAMED, ids=str)
def test_a_key_that_a_message_names_is_there(section, name, key):
    if section == 'train_loader':
        assert name in parameters(build_dynamic_text_dataloader) | {'name'}
    else:
        assert part_of(section, name) is not None
    keys = keys_of(section, name)
    assert not key or key in keys or 'kwargs' in keys  # of a callback that hands them on
