"""Names and shapes of a model's parameters, from its config alone: what files are held against."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PretrainedConfig

from llmshearing.compat.transformers import left_out_names, tied_names
from llmshearing.models.families import stored_name
from llmshearing.models.on_meta import build_on_meta
from llmshearing.models.stored_names import stored_tensors

__all__ = ['ParameterShapes', 'check_generation', 'check_tensors', 'expected_shapes', 'parameter_shapes']

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
    def count(self) -> int:
        """Numbers in all of them, a tied one counted once."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name not in self.tied)


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


def expected_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a config's causal language model."""
    return parameter_shapes(config).shapes


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
            f'transformers {here} here. Go on with transformers {written}, or export it{"" if theirs else " there"}.'
        )


def check_tensors(
    where: str,
    got: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    optional: Iterable[str] = (),
) -> None:
    """Raises a ValueError that names every missing, extra or mis-shaped tensor.

    Args:
        where (str): What is checked, for the message.
        got (Mapping[str, tuple[int, ...]]): Shapes by name.
        expected (Mapping[str, tuple[int, ...]]): Shapes by name.
        optional (Iterable[str]): Names that may be absent.
    """
    problems = []
    missing = sorted(set(expected) - set(got) - set(optional))
    extra = sorted(set(got) - set(expected))
    shaped = [
        f'{name} is {list(got[name])}, expected {list(expected[name])}'
        for name in expected
        if name in got and tuple(got[name]) != tuple(expected[name])
    ]
    for what, names in (('missing', missing), ('not expected', extra), ('of another shape', shaped)):
        if names:
            more = f', and {len(names) - LISTED} more' if len(names) > LISTED else ''
            problems.append(f'  - {what}: {", ".join(names[:LISTED])}{more}')
    if problems:
        listed = '\n'.join(problems)
        raise ValueError(f'{where}: the tensors do not fit the config:\n{listed}')
