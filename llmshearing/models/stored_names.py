"""Parameters in memory and tensors in a model folder: other names for some, experts one by one, others in pieces.

Files hold each projection of each expert as a tensor of its own, as transformers of either generation writes and reads
them; in memory transformers 5 has one parameter for all gate and up projections of a layer, and one for all down
projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmshearing.compat.transformers import layer_kinds
from llmshearing.models.families import find_table, stored_name
from llmshearing.models.shapes import shape_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['read_parameter', 'stored_pieces', 'stored_tensors']


def stored_tensors(config: PretrainedConfig, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What a model folder holds of a parameter of that name in memory.

    Yields:
        tuple[str, Tensor]: Name and tensor; of experts each projection of each of them, and of others each piece:
            views of the parameter.
    """
    names = stored_pieces(config, name)
    if names:
        yield from zip(names, tensor.split(_rows(config, names, len(tensor))))
        return
    path, projections = _place(config, name)
    if not projections:
        yield path, tensor
        return
    for expert, weight in enumerate(tensor):
        for projection, part in zip(projections, weight.chunk(len(projections))):
            yield f'{path}.{expert}.{projection}.weight', part


def read_parameter(config: PretrainedConfig, name: str, read: Callable[[str], Tensor]) -> Tensor:
    """A parameter as it is in memory, from the tensors of a model folder.

    Args:
        config (PretrainedConfig): Of the model.
        name (str): Name of the parameter in memory.
        read (Callable): A tensor of the folder, by its name there.
    """
    names = stored_pieces(config, name)
    if names:
        return torch.cat([read(piece) for piece in names])
    path, projections = _place(config, name)
    if not projections:
        return read(path)
    experts = range(shape_of(config).num_experts)
    return torch.stack(
        [torch.cat([read(f'{path}.{e}.{projection}.weight') for projection in projections]) for e in experts]
    )


def stored_pieces(config: PretrainedConfig, name: str) -> tuple[str, ...]:
    """Names in a model folder of a parameter whose layer lies there in another way, in order; none for any other."""
    family = find_table(config)
    held = None if family is None else family.stored_pieces
    layers = '' if family is None else f'{family.decoder}.layers.'
    if held is None or not name.startswith(layers):
        return ()
    layer, _, inside = name.removeprefix(layers).partition('.')
    if (layer_kinds(config) or ())[int(layer)] != held.kind:
        return ()
    return tuple(f'{layers}{layer}.{piece}' for piece in held.names.get(inside, ()))


def _rows(config: PretrainedConfig, names: tuple[str, ...], rows: int) -> list[int]:
    """Rows of each piece of a parameter that has so many."""
    family = find_table(config)
    if len(names) == 1 or family is None or family.stored_pieces is None:
        return [rows]
    return list(family.stored_pieces.rows(config))


def _place(config: PretrainedConfig, name: str) -> tuple[str, tuple[str, ...]]:
    """Name of a parameter in files, or the path of its experts and the names of their projections."""
    family = find_table(config)
    stored = None if family is None else family.stored_experts
    if family is None or stored is None:
        return stored_name(config, name), ()
    before, found, inside = name.partition(f'.{family.mlp}.')
    if not found:
        return name, ()
    of_experts = {'experts.gate_up_proj': (stored.gate, stored.up), 'experts.down_proj': (stored.down,)}
    projections = of_experts.get(inside, ())
    return f'{before}.{stored.mlp}.{"experts" if projections else inside}', projections
