"""The single checks that sections of a configuration are made of:
keys, kinds of values, names in a registry, times, numbers.

Every message begins with the place in the configuration, says what was expected, and what is there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llmshearing.config.types import misfit, parameters_of, takes_any_key

__all__ = [
    'built',
    'check_keys',
    'check_name',
    'check_one_of',
    'check_time',
    'check_whole',
    'constructor_of',
    'refuse_unknown',
]

# Annotated as a whole number by llm-foundry, whose loaders need null where there are no workers.
MAY_BE_NULL = ('prefetch_factor',)


def check_keys(
    where: str, settings: Any, *constructors: Callable, given: Iterable[str] = (), more: Iterable[str] = ()
) -> None:
    """Refuses keys that no constructor takes, missing required ones, and values of another kind than the annotation.

    Args:
        where (str): Place in the configuration, for the message.
        settings (Any): What stands there.
        *constructors (Callable): Classes or functions whose parameters may be set; the first that has
            a parameter decides.
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


def check_whole(key: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuses what is no whole number within the limits."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f'of at least {least}' if most is None else f'from {least} to {most}'
        raise ValueError(f'{key}: expected a whole number {limits}, got {value!r}.')


def check_one_of(key: str, value: Any, possible: Iterable[str]) -> None:
    """Refuses what is not among the possible values."""
    if value not in possible:
        raise ValueError(f'{key}: expected one of {", ".join(possible)}, got {value!r}.')


def check_name(key: str, value: Any) -> None:
    """Refuses what is no text, or an empty one."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'{key}: expected a name, got {value!r}.')
