"""What a family's table says of a decoder's modules: which axis of which parameter is which prunable axis.

A table names, for one decoder layer, each module that owns parameters and says for each side of its weight which
dimension it runs along (:data:`~llmshearing.models.dimensions.DIMENSIONS`). Together with what *reads* the stream
(norms) and what *writes* to it, this is all that cutting, folding, exporting and counting need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from llmshearing.models.shapes import shape_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    'EXPERT',
    'Experts',
    'Family',
    'Linear',
    'Norm',
    'PerUnit',
    'Role',
    'StoredExperts',
    'StoredPieces',
    'Whole',
    'expert_of',
]

EXPERT = '{expert}'  # in a path: the number of a routed expert


@dataclasses.dataclass(frozen=True)
class Linear:
    """A projection. Its weight is [rows, columns]; a bias runs along the rows.

    Attributes:
        needed (tuple[str, ...]): Names of the tensors that such a module holds.
        optional (tuple[str, ...]): Names of those that it may hold.
        rows (str | None): Dimension of the output, or None where it is never cut.
        columns (str | None): Dimension of the input.
        writes (bool): Its output is added to the residual stream: rows and bias are scaled by hidden and layer masks.
        expert (int | None): Of which routed expert it is, None where of none; set by :meth:`Family.for_layers_of`.
    """

    needed: ClassVar[tuple[str, ...]] = ('weight',)
    optional: ClassVar[tuple[str, ...]] = ('bias',)

    rows: str | None
    columns: str | None
    writes: bool = False
    expert: int | None = None


@dataclasses.dataclass(frozen=True)
class Norm:
    """A normalisation with a gain and perhaps a bias.

    Attributes:
        dim (str | None): Dimension it normalises, or None where it is never cut (norms over one head).
        reads (bool): Its input is the residual stream: gain and bias are scaled by the hidden mask.
        writes (bool): Its output is added to the residual stream: scaled by hidden and layer masks.
        offset (float): The gain in use is ``offset + weight`` (1 in Gemma).
        feeds (str | None): What reads its output, of a norm that reads the stream: ``'attention'`` (or another mixer),
            ``'mlp'`` or ``'head'``; None where that is more than one of them.
    """

    needed: ClassVar[tuple[str, ...]] = ('weight',)
    optional: ClassVar[tuple[str, ...]] = ('bias',)

    dim: str | None = 'hidden'
    reads: bool = False
    writes: bool = False
    offset: float = 0.0
    feeds: str | None = None


@dataclasses.dataclass(frozen=True)
class Experts:
    """All routed experts of a layer, in parameters of three dimensions; gate and up projection in one.

    ``gate_up_proj`` is [experts, 2 x intermediate, hidden], ``down_proj`` [experts, hidden, intermediate]; their biases
    are [experts, 2 x intermediate] and [experts, hidden]. What comes out is added to the residual stream.

    Attributes:
        transposed (bool): The last two dimensions of both weights are the other way round.
        interleaved (bool): Rows of gate and up alternate; else all of gate come first.
    """

    needed: ClassVar[tuple[str, ...]] = ('gate_up_proj', 'down_proj')
    optional: ClassVar[tuple[str, ...]] = ('gate_up_proj_bias', 'down_proj_bias')
    writes: ClassVar[bool] = True

    transposed: bool = False
    interleaved: bool = False


@dataclasses.dataclass(frozen=True)
class StoredExperts:
    """How a model folder holds experts that are one tensor in memory: each by itself, as its projections.

    Attributes:
        mlp (str): Path of the MLP inside a layer, in files.
        gate (str): Name of an expert's gate projection.
        up (str): Of its up projection.
        down (str): Of its down projection.
    """

    mlp: str
    gate: str
    up: str
    down: str


@dataclasses.dataclass(frozen=True)
class StoredPieces:
    """How a model folder holds layers of one kind, where their tensors have other names or lie there in pieces.

    Attributes:
        kind (str): Kind of these layers.
        names (Mapping[str, tuple[str, ...]]): Names in files by the one in memory, all inside the layer. Of several
            each holds so many rows of the parameter, one after the other.
        rows (Callable): From the config to the rows of each of several.
    """

    kind: str
    names: Mapping[str, tuple[str, ...]]
    rows: Callable[[PretrainedConfig], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Whole:
    """Parameters that a module holds besides its submodules and that are never cut, such as those of an activation.

    Attributes:
        parameters (tuple[str, ...]): Their names in the module.
        buffers (tuple[str, ...]): Names of its constants that files hold as well.
        optional (tuple[str, ...]): Names of parameters that it may hold besides.
    """

    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of all tensors that files hold."""
        return (*self.parameters, *self.buffers)


@dataclasses.dataclass(frozen=True)
class PerUnit:
    """Parameters of a module that have an entry per unit along their first dimension.

    Those of an attention module itself, such as attention sinks, or of a depthwise convolution.

    Attributes:
        parameters (tuple[str, ...]): Their names in the module.
        dim (str): Dimension that their first one is.
        optional (tuple[str, ...]): Names of those that it may hold besides.
    """

    parameters: tuple[str, ...]
    dim: str = 'per_head'
    optional: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of all tensors that files hold."""
        return self.parameters


Role = Linear | Norm | Whole | Experts | PerUnit


@dataclasses.dataclass(frozen=True)
class Family:
    """Where the parameters of a decoder are and along which axes they are cut.

    Attributes:
        layer (Mapping[str, Role]): Role of each module of one decoder layer, by its path inside the layer. A path with
            ``{expert}`` is that of a module of every routed expert.
        layer_of_kind (Mapping[str, Mapping[str, Role]]): Where layers differ by more than how they attend: the modules
            that a layer of each kind has besides. Kinds as in ``layer_types``. A mixer that is not attention is opaque:
            its inner sizes stay, or follow hidden masks, and what reads and writes the stream follows hidden and layer
            masks.
        decoder (str): Path of the module that embeds the tokens and runs the layers.
        embedding (str): Path of the embedding inside the decoder.
        final_norm (str): Path of the last norm inside the decoder.
        head (str): Path of the LM head.
        stored_names (Mapping[str, str]): Paths of modules or parameters that are other ones in a model folder.
        attention (str): Path of the attention module inside a layer.
        mlp (str): Path of the MLP inside a layer.
        expert_names (tuple[str, str, str]): Gate, up and down projection of a routed expert, where each is a module.
        stored_experts (StoredExperts | None): How a model folder holds its experts, where that is another way.
        stored_pieces (StoredPieces | None): How it holds layers of one kind, where that is another way.
        norm_offset (float): Gain offset of the final norm.
        has_head_dim (bool): The config has a ``head_dim`` of its own, so hidden_size is free of heads x head_dim.
        scales_embedding (bool): The model multiplies embeddings by sqrt(hidden_size). The cut model does the same with
            its own hidden size, in the masked forward as in the exported config.
        layer_types (Callable | None): Kind of each layer by its position, from the config. A finished model's layer
            must stand where its kind is expected. None where all layers are alike.
        subtracts_mean (bool): Its norms over the stream are LayerNorms, which subtract the mean; RMSNorms do not.
        kinds (tuple[str, ...]): Kind of each layer of one model; set by :meth:`for_layers_of`.
    """

    layer: Mapping[str, Role]
    decoder: str = 'model'
    embedding: str = 'embed_tokens'
    final_norm: str = 'norm'
    head: str = 'lm_head'
    stored_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attention: str = 'self_attn'
    mlp: str = 'mlp'
    expert_names: tuple[str, str, str] = ('gate_proj', 'up_proj', 'down_proj')
    stored_experts: StoredExperts | None = None
    stored_pieces: StoredPieces | None = None
    norm_offset: float = 0.0
    has_head_dim: bool = True
    scales_embedding: bool = False
    layer_types: Callable[[PretrainedConfig], tuple] | None = None
    subtracts_mean: bool = False
    layer_of_kind: Mapping[str, Mapping[str, Role]] = dataclasses.field(default_factory=dict)
    kinds: tuple[str, ...] = ()

    def for_layers_of(self, config: PretrainedConfig) -> Family:
        """The table for one model: its experts one by one, and kinds of layers that have modules of their own."""
        family = self
        if any(EXPERT in path for path in self.layer):
            family = dataclasses.replace(self, layer=dict(_each_expert(self.layer, shape_of(config).num_experts)))
        if self.layer_types is None or not self.layer_of_kind:
            return family
        return dataclasses.replace(family, kinds=self.layer_types(config))

    @property
    def has_experts(self) -> bool:
        """Whether its layers have routed experts."""
        return any(
            isinstance(role, Experts) or EXPERT in path or expert_of(role) is not None
            for path, role in self.layer.items()
        )

    @property
    def rotates(self) -> bool:
        """Whether an orthogonal change of basis of its residual stream leaves its models what they are."""
        return self.why_not_rotatable is None

    @property
    def why_not_rotatable(self) -> str | None:
        """Why such a change makes other models of them; None where it does not."""
        writing_norms = sorted(path for path, role in self.roles() if isinstance(role, Norm) and role.writes)
        if writing_norms:
            return (
                f'what its layers add to the residual stream comes out of norms ({", ".join(writing_norms)}), whose '
                'gains scale single coordinates and cannot be folded into anything'
            )
        if self.subtracts_mean:
            return (
                'its norms are LayerNorms, which subtract the mean over the coordinates, and that mean is another one '
                'in every basis and after every cut'
            )
        if self.has_experts:
            return 'it is a mixture of experts, whose experts and routers rotation does not know'
        return None

    @property
    def embedding_path(self) -> str:
        """Path of the embedding."""
        return f'{self.decoder}.{self.embedding}'

    @property
    def final_norm_path(self) -> str:
        """Path of the last norm."""
        return f'{self.decoder}.{self.final_norm}'

    def layer_path(self, layer: int) -> str:
        """Path of a layer."""
        return f'{self.decoder}.layers.{layer}'

    def roles(self, layer: int | None = None) -> Iterator[tuple[str, Role]]:
        """Yields (path inside the layer, role) of each module of a layer, or of all kinds of layers that there are."""
        kinds = self.kinds or self.layer_of_kind if layer is None else self.kinds[layer : layer + 1]
        yield from self.layer.items()
        for kind, modules in self.layer_of_kind.items():
            if kind in kinds:
                yield from modules.items()

    def has_attention(self, layer: int) -> bool:
        """Whether a layer has the heads that masks are about."""
        return any(path.startswith(f'{self.attention}.') for path, _ in self.roles(layer))

    @property
    def least_layers(self) -> int:
        """How many layers a finished model has at least: up to the first with attention, without which none runs."""
        return 1 + next(filter(self.has_attention, range(len(self.kinds))), len(self.kinds))

    def stored_name(self, name: str) -> str:
        """Name in a model folder of a parameter of the model."""
        for path, stored in self.stored_names.items():
            if f'.{path}.' in f'.{name}.':
                return f'.{name}.'.replace(f'.{path}.', f'.{stored}.', 1).strip('.')
        return name

    def modules(self, num_hidden_layers: int) -> Iterator[tuple[str, Role, int | None]]:
        """Yields (module path, role, layer) of every module that owns parameters; layer is None outside the layers."""
        yield self.embedding_path, Linear(None, 'hidden'), None
        for layer in range(num_hidden_layers):
            for name, role in self.roles(layer):
                yield f'{self.layer_path(layer)}.{name}', role, layer
        yield self.final_norm_path, Norm(reads=True, offset=self.norm_offset, feeds='head'), None
        yield self.head, Linear(None, 'hidden'), None


def expert_of(role: Role) -> int | None:
    """The routed expert that a module is a projection of; None for any other module."""
    return role.expert if isinstance(role, Linear) else None


def _each_expert(layer: Mapping[str, Role], num_experts: int) -> Iterator[tuple[str, Role]]:
    for path, role in layer.items():
        if EXPERT in path and isinstance(role, Linear):
            for expert in range(num_experts):
                yield path.replace(EXPERT, str(expert)), dataclasses.replace(role, expert=expert)
        else:
            yield path, role
