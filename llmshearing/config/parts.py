"""What llm-foundry would build for a name, and building it for its own checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmshearing.utils.suggestions import did_you_mean

__all__ = ['build_for_checks', 'constructor_of', 'eval_loaders', 'our_parts', 'pruning_name', 'section_names']


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
    raise ValueError(f'{where}: there is no {name!r}.{did_you_mean(name, known)} Possible: {", ".join(known)}.')


def build_for_checks(where: str, constructor: Callable, settings: Mapping[str, Any]) -> Any:
    """Builds something that has no effect outside, for its own checks; what it warns of is told when the run builds it.

    Raises:
        ValueError: With the place in the configuration before the constructor's message.
    """
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return constructor(**settings)
    except (TypeError, ValueError, OverflowError, OSError, NotImplementedError) as error:
        raise ValueError(f'{where}: {error}') from error
    finally:
        logging.disable(silenced)


def eval_loaders(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The evaluation loaders of a configuration, each with its place for messages."""
    listed = config.get('eval_loaders') or []  # llm-foundry's name of a list under eval_loader
    alone = [('eval_loader', config['eval_loader'])] if config.get('eval_loader') is not None and not listed else []
    return alone + [(f'eval_loader[{number}]', loader) for number, loader in enumerate(listed)]


def our_parts(config: Mapping[str, Any]) -> Iterator[str]:
    """Names in a configuration that this package has registered; whatever else is wrong with it."""
    from llmfoundry import registry

    places = (
        (registry.models, section_names(config.get('model'), 'name')),
        (registry.dataloaders, section_names(config.get('train_loader'), 'name')),
        (registry.algorithms, section_names(config.get('algorithms'))),
        (registry.callbacks, section_names(config.get('callbacks'))),
        (registry.loggers, section_names(config.get('loggers'))),
    )
    for entries, names in places:
        for name in names:
            if name in entries and entries.get(name).__module__.split('.')[0] == 'llmshearing':
                yield name


def pruning_name(config: Mapping[str, Any]) -> str | None:
    """The name of targeted_pruning, or of an algorithm that another package made of it; None in a run without one."""
    names = section_names(config.get('algorithms'))
    if 'targeted_pruning' in names or not names:
        return 'targeted_pruning' if names else None
    from llmfoundry.registry import algorithms

    from llmshearing.algorithms.targeted_pruning import TargetedPruning

    made = {name: algorithms.get(name) for name in names if name in algorithms}
    return next(
        (name for name, one in made.items() if isinstance(one, type) and issubclass(one, TargetedPruning)), None
    )


def section_names(section: Any, key: str = '') -> list[str]:
    """The value of ``key``, or without one all keys of a section, as far as they are text."""
    if not isinstance(section, Mapping):
        return []
    return [name for name in ([section.get(key)] if key else section) if isinstance(name, str)]
