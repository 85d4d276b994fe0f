"""Private parts of other libraries are touched in compat alone; ruff (SLF) sees all but those of a base class."""

import ast
import importlib
import inspect
from pathlib import Path

import llmshearing

PACKAGE = Path(llmshearing.__file__).parent


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.startswith('__')


def modules():
    for path in sorted(PACKAGE.rglob('*.py')):
        inside = path.relative_to(PACKAGE).with_suffix('').parts
        if inside[0] != 'compat' and '\nclass ' in path.read_text():
            yield importlib.import_module('.'.join(('llmshearing', *inside)).removesuffix('.__init__'))


def test_no_class_uses_or_replaces_what_a_base_of_another_library_keeps_to_itself():
    found, classes = [], 0
    for module in modules():
        for name, cls in inspect.getmembers(
            module, lambda item: inspect.isclass(item) and item.__module__ == module.__name__
        ):
            ours = [one for one in cls.__mro__ if one.__module__.startswith('llmshearing.')]
            others = [one for one in cls.__mro__ if one not in ours and one is not object]
            sources = [inspect.getsource(one) for one in ours if not one.__module__.startswith('llmshearing.compat')]
            nodes = [node for source in sources for node in ast.walk(ast.parse(inspect.cleandoc('\n' + source)))]
            at_self = [node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'self']
            made = {node.attr for node in at_self if isinstance(node.ctx, ast.Store)}.union(*map(vars, ours))
            used = {node.attr for node in at_self} - made
            methods = (part for part, value in vars(cls).items() if inspect.isfunction(value))
            replaced = {part for part in methods if any(part in vars(one) for one in others)}
            found += [f'{module.__name__}.{name}.{part}' for part in used | replaced if is_private(part)]
            classes += bool(others)
    assert classes > 20 and not found
