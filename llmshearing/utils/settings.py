"""Settings held against the signatures of what they build: keys that exist, required ones, kinds of values.

pydantic validates types that a project writes down itself. Here the types are the annotations of constructors of
Composer, Streaming and llm-foundry, which know nothing of it: it would coerce (``'1e-4'`` to a number, ``1`` to true)
where these libraries do not, and cannot build a schema for their classes. So annotations are read by
:mod:`llmshearing.utils.annotations`.

Every message begins with the place in the configuration, says what was expected, and what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llmshearing.utils.annotations import expected_instead, parameters_of, takes_any_key
from llmshearing.utils.suggestions import refuse_unknown

__all__ = ['check_keys']

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

    Raises:
        ValueError: Naming the place, what was expected and what is there.
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
        expected = None if value is None and key in MAY_BE_NULL else expected_instead(value, annotation)
        if expected is not None:
            raise ValueError(f'{where}.{key}: expected {expected}, got {value!r}.')
