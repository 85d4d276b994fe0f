"""The registry of model families: from a config to the table of its model type.

The tables of this package are in :mod:`~llmshearing.models.family_tables`. Whoever has another one registers a
:class:`~llmshearing.models.roles.Family` under its ``model_type``, in Python (``families('mine', func=MINE)``) or by an
entry point of the group ``llmshearing_families``. Commands that read checkpoints and folders find the second alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import catalogue

from llmshearing.models.family_tables import TABLES
from llmshearing.models.mixtures import check_mixture, table_name
from llmshearing.models.roles import Family
from llmshearing.utils.checks import of_another_package
from llmshearing.utils.suggestions import nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['families', 'family_of', 'find_table', 'has_own_table', 'installed_table', 'stored_name']

families = catalogue.create('llmshearing', 'families', entry_points=True)
for _model_type, _table in TABLES.items():
    families(_model_type, func=_table)


@functools.cache
def installed_table(name: str) -> Family | None:
    """The table that another package brings; asked for once, as a look at all packages takes milliseconds.

    What its entry point names is imported, and may register config and model of its type with transformers. A name that
    comes from a file chooses among installed packages and leads to no other code.
    """
    return families.get_entry_point(name)


def find_table(config: PretrainedConfig) -> Family | None:
    """The table of a config's model, as it is registered, or None."""
    name = table_name(config)
    return installed_table(name) or catalogue.REGISTRY.get((*families.namespace, name))


def has_own_table(config: PretrainedConfig) -> bool:
    """Whether the table of a config's model is one of this package, which the tests hold against exported folders."""
    return find_table(config) is TABLES.get(table_name(config))


def stored_name(config: PretrainedConfig, name: str) -> str:
    """Name in a model folder of a parameter of the model in memory; the same for types without a table."""
    family = find_table(config)
    return name if family is None else family.stored_name(name)


def family_of(config: PretrainedConfig) -> Family:
    """The table of a config's model type, for its layers.

    Raises:
        ValueError: For a model type without a table, naming the supported ones, and for a mixture of experts with
            layers that have none.
    """
    family = find_table(config)
    if family is not None:
        check_mixture(config)
        return family.for_layers_of(config)
    known = sorted(families.get_all())
    near = nearest(config.model_type, known)
    reason = ''
    if getattr(config, 'is_encoder_decoder', False):
        reason = ' (an encoder-decoder model)'
    elif any(getattr(config, name, None) for name in ('num_experts', 'num_local_experts', 'n_routed_experts')):
        reason = ' (a mixture of experts)'
    raise ValueError(
        f'model_type {config.model_type!r}{reason} is not supported; '
        f'{f"the nearest that is: {near!r}; " if near else ""}supported: {", ".join(known)}.'
        + of_another_package('table', 'families')
    )
