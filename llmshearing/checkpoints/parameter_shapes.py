"""Names and shapes of a model's parameters, from its config alone: what files are held against."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PretrainedConfig

from llmshearing.checkpoints.lazy_tensors import StoredTensor
from llmshearing.compat.transformers import left_out_names, tied_names
from llmshearing.models.families import stored_name
from llmshearing.models.on_meta import build_on_meta
from llmshearing.models.stored_names import stored_tensors

__all__ = ['ParameterShapes', 'check_generation', 'parameter_shapes']

LISTED = 12  # names in one message
EXPERT_MODULE = re.compile(r'\.experts\.\d+\.')


@dataclasses.dataclass(frozen=True)
class ParameterShapes:
    """The parameters of a causal language model by name.

    Attributes:
        shapes (dict[str, tuple[int, ...]]): Shape of every one.
        tied (frozenset[str]): Those that another tensor stands for, which files may leave out.
        ignored (tuple[str, ...]): Patterns of names in files that transformers passes over.
    """

    shapes: dict[str, tuple[int, ...]]
    tied: frozenset[str]
    ignored: tuple[str, ...]

    @property
    def needed(self) -> dict[str, tuple[int, ...]]:
        """Shape of every one that files must hold."""
        return {name: shape for name, shape in self.shapes.items() if name not in self.tied}

    @property
    def count(self) -> int:
        """Numbers in all of them, a tied one counted once."""
        return sum(map(math.prod, self.needed.values()))

    def check(self, where: str, stored: Mapping[str, StoredTensor]) -> None:
        """Raises a ValueError that names every missing, extra or mis-shaped tensor; tied ones may be missing.

        Args:
            where (str): What is checked, for the message.
            stored (Mapping[str, StoredTensor]): What there is, by name.
        """
        shaped = [
            f'{name} is {list(stored[name].shape)}, expected {list(shape)}'
            for name, shape in self.shapes.items()
            if name in stored and stored[name].shape != shape
        ]
        problems = {
            'missing': sorted(self.needed.keys() - stored.keys()),
            'not expected': sorted(stored.keys() - self.shapes.keys()),
            'of another shape': shaped,
        }
        lines = []
        for what, names in problems.items():
            if names:
                more = f', and {len(names) - LISTED} more' if len(names) > LISTED else ''
                lines.append(f'  - {what}: {", ".join(names[:LISTED])}{more}')
        if lines:
            raise ValueError('\n'.join([f'{where}: the tensors do not fit the config:', *lines]))


def parameter_shapes(config: PretrainedConfig, in_files: bool = False) -> ParameterShapes:
    """Reads them off a model on the meta device.

    Args:
        config (PretrainedConfig): Its config.
        in_files (bool): Use the names in a model folder instead of those in memory. Default: ``False``.

    Raises:
        ValueError: If no model can be built from the config.
    """
    model = build_on_meta(config)

    def named(name: str) -> str:
        return stored_name(config, name) if in_files else name

    tied = tied_names(model) if config.tie_word_embeddings else ()
    return ParameterShapes(
        {
            stored: tuple(part.shape)
            for name, tensor in model.state_dict().items()
            for stored, part in (stored_tensors(config, name, tensor) if in_files else ((name, tensor),))
        },
        frozenset(map(named, tied)),
        left_out_names(model),
    )


def check_generation(path: Path, stored: Iterable[str], expected: Iterable[str]) -> None:
    """Refuses a checkpoint of a mixture that has its experts in the way of the other generation of transformers.

    Args:
        path (Path): The checkpoint, for the message.
        stored (Iterable[str]): Names of its weights.
        expected (Iterable[str]): Names in the memory of the installed transformers.

    Raises:
        ValueError: If one of them has a module for every expert and the other has not.
    """
    theirs, ours = (any(EXPERT_MODULE.search(name) for name in names) for names in (stored, expected))
    if theirs != ours:
        written, here = (4, 5) if theirs else (5, 4)
        raise ValueError(
            f'{path} is of transformers {written}, which has the experts of a mixture in other tensors than '
            f'transformers {here} here. Finish the run with transformers {written}; what it exports opens with both.'
        )
