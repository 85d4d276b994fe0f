"""Whether a value from a YAML can be what a constructor's annotation asks for.

YAML gives numbers, strings, booleans, lists and mappings; annotations are the only thing that all constructors of
Composer, Streaming and llm-foundry say about their settings. So annotations are read here: a value that fits passes,
one that cannot fit is named with its key. What an annotation leaves open (classes such as ``Time``, which take strings)
is left to the constructor.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

from llmshearing.utils.checks import is_integer, is_number

__all__ = ['described', 'expected_instead', 'parameters_of', 'takes_any_key']

LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping)


def parameters_of(constructor: Callable) -> dict[str, tuple[Any, bool]]:
    """Annotation and whether it must be given, by name of the parameter; ``*args`` and ``**kwargs`` are left out."""
    if _hides_fields(constructor):
        hints = typing.get_type_hints(constructor)
        return {
            field.name: (hints[field.name], field.default is field.default_factory is dataclasses.MISSING)
            for field in dataclasses.fields(constructor)
        }
    function = _function_of(constructor)
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # names imported for type checkers only
        hints = {}
    parameters = list(inspect.signature(function).parameters.values())
    return {
        parameter.name: (hints.get(parameter.name, Any), parameter.default is parameter.empty)
        for parameter in parameters[isinstance(constructor, type) :]  # without self
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def takes_any_key(constructor: Callable) -> bool:
    """Whether it has ``**kwargs``."""
    if _hides_fields(constructor):
        return False
    return any(p.kind == p.VAR_KEYWORD for p in inspect.signature(_function_of(constructor)).parameters.values())


def _hides_fields(constructor: Callable) -> TypeGuard[type[Any]]:
    """Whether it is a data class with an ``__init__`` of its own that says nothing, as some of Composer's are."""
    if '__dataclass_fields__' not in getattr(constructor, '__dict__', {}):
        return False
    parameters = list(inspect.signature(constructor).parameters.values())
    return all(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)


def _function_of(constructor: Callable) -> Callable:
    """The function whose parameters are the settings: of a class its ``__init__``, under decorators that hide it."""
    if not isinstance(constructor, type):
        return constructor
    function = constructor.__init__
    hidden = [cell.cell_contents for cell in getattr(function, '__closure__', None) or ()]
    return next((one for one in hidden if getattr(one, '__name__', '') == '__init__'), function)


def expected_instead(value: Any, annotation: Any) -> str | None:
    """What a value of a YAML should be instead, in words; None if it can be used for the (resolved) annotation."""
    return described(annotation) if _fits(value, annotation) is False else None


def _fits(value: Any, annotation: Any) -> bool | None:
    """True or False; None where the annotation says nothing about values of a YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        answers = [_fits(value, argument) for argument in arguments]
        return True if True in answers else (False if False in answers else None)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in arguments)  # true is not 1
    kind = origin or annotation
    if kind is None or kind is types.NoneType:
        return value is None
    if kind is float:
        return is_number(value)
    if kind is int:
        return is_integer(value)
    if kind in (str, bool):
        return isinstance(value, kind)
    if kind is Path:
        return isinstance(value, str)
    if kind in MAPPINGS:
        return isinstance(value, collections.abc.Mapping) and all(
            _fits(item, arguments[1]) is not False for item in (value.values() if len(arguments) == 2 else ())
        )
    if kind in LISTS:
        return _fits_list(value, arguments, fixed=kind is tuple and Ellipsis not in arguments)
    return None


def _fits_list(value: Any, arguments: tuple[Any, ...], fixed: bool) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    if fixed and arguments:
        return len(value) == len(arguments) and all(
            _fits(item, kind) is not False for item, kind in zip(value, arguments)
        )
    return all(_fits(item, arguments[0]) is not False for item in (value if arguments else ()))


def described(annotation: Any) -> str:
    """An annotation in the words of a YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        words = dict.fromkeys(described(argument) for argument in arguments)
        return ' or '.join([*(word for word in words if word != 'null'), *(['null'] if 'null' in words else [])])
    if origin is typing.Literal:
        return 'one of ' + ', '.join(map(repr, arguments))
    kind = origin or annotation
    if kind is tuple and arguments and Ellipsis not in arguments:
        return f'a list of {len(arguments)}: {", ".join(map(described, arguments))}'
    if kind in MAPPINGS:
        return 'keys and values' + (
            f' ({described(arguments[1])})' if len(arguments) == 2 and arguments[1] is not Any else ''
        )
    if kind in LISTS:
        return 'a list' + (f' (each {described(arguments[0])})' if arguments and arguments[0] is not Any else '')
    words = {
        float: 'a number',
        int: 'a whole number',
        str: 'text',
        bool: 'true or false',
        Path: 'a path',
        types.NoneType: 'null',
    }
    return words.get(kind, getattr(kind, '__name__', str(kind)).lower())
