"""Which parts of a decoder touch its residual stream, by the family's table, and whether its basis may be changed.

The stream is a vector x [hidden_size] per token. Rows of the embedding begin it, *writers* add to it, *reading norms*
normalise a copy of it for their *readers*. An orthogonal Q leaves the model's function as it is where nothing but
linear maps and RMSNorms touch x: ``rms(x Q) = rms(x)``, so readers, embedding and head times Q and writers times the
transposed Q compute the same numbers in another basis. A norm's gain stands between: it has an axis per coordinate and
is folded into the readers first (:mod:`llmshearing.rotation.folding`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from llmshearing.models.families import family_of
from llmshearing.models.roles import Family, Linear, Norm
from llmshearing.rotation.channels import Channels, channels_among

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['ReadingNorm', 'StreamParts', 'check_rotatable', 'stream_parts']

INSTEAD = (
    'prune it in its own basis: `targeted_pruning` with `scores: {hidden: activation}` and `compensate: true` is the '
    'best that coordinates allow'
)


@dataclasses.dataclass(frozen=True)
class ReadingNorm:
    """A norm whose input is the residual stream.

    Attributes:
        path (str): Module path.
        readers (tuple[str, ...]): Paths of the projections whose input is its output.
        offset (float): The gain in use is ``offset + weight``.
    """

    path: str
    readers: tuple[str, ...]
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class StreamParts:
    """Everything of a model that the basis of its stream changes; other parameters stay as they are.

    Attributes:
        norms (tuple[ReadingNorm, ...]): In the order of the forward pass; the last is the final norm, which feeds the
            LM head.
        writers (tuple[str, ...]): Paths of the projections that add to the stream.
        embedding (str): Path of the token embedding.
        head (str): Path of the LM head.
        tied (bool): The LM head is the embedding.
        hidden_size (int): Width of the stream.
        scales_embedding (bool): Embeddings are multiplied by sqrt(hidden_size) before they begin the stream.
        channels (tuple[Channels, ...]): Of each mixer that has as many channels as the stream has dimensions.
    """

    norms: tuple[ReadingNorm, ...]
    writers: tuple[str, ...]
    embedding: str
    head: str
    tied: bool
    hidden_size: int
    scales_embedding: bool = False
    channels: tuple[Channels, ...] = ()

    @property
    def final_norm(self) -> ReadingNorm:
        """The norm before the LM head."""
        return self.norms[-1]

    @property
    def norm_of(self) -> dict[str, ReadingNorm]:
        """The norm that each reader reads."""
        return {reader: norm for norm in self.norms for reader in norm.readers}

    @property
    def channels_of(self) -> dict[str, Channels]:
        """The channels that each module's weights run along."""
        return {path: channels for channels in self.channels for path in channels.sides}


def check_rotatable(config: PretrainedConfig) -> Family:
    """The family of a config whose residual stream can be put into another basis exactly.

    Raises:
        ValueError: For families in which an orthogonal change of basis changes the model; says why and what to do
            instead. Also for model types without a table.
    """
    family = family_of(config)
    if family.why_not_rotatable is not None:
        raise ValueError(f'{config.model_type} cannot be rotated: {family.why_not_rotatable}; {INSTEAD}.')
    return family


def stream_parts(config: PretrainedConfig) -> StreamParts:
    """Reads the parts off the table of the config's family.

    Raises:
        ValueError: As :func:`check_rotatable`.
    """
    family = check_rotatable(config)
    norms, writers, channels = [], [], []
    for layer in range(config.num_hidden_layers):
        place = f'{family.layer_path(layer)}.'
        channels.append(channels_among({place + path: role for path, role in family.roles(layer)}))
        for path, role in family.roles(layer):
            if isinstance(role, Norm) and role.reads:
                readers = tuple(
                    place + reader
                    for reader, other in family.roles(layer)
                    if isinstance(other, Linear)
                    and other.columns == 'hidden'
                    and reader.startswith(f'{family.mlp}.') == (role.feeds == 'mlp')
                )
                norms.append(ReadingNorm(place + path, readers, role.offset))
            elif isinstance(role, Linear) and role.writes:
                writers.append(place + path)
    norms.append(ReadingNorm(family.final_norm_path, (family.head,), family.norm_offset))
    return StreamParts(
        norms=tuple(norms),
        writers=tuple(writers),
        embedding=family.embedding_path,
        head=family.head,
        tied=bool(config.tie_word_embeddings),
        hidden_size=config.hidden_size,
        scales_embedding=family.scales_embedding,
        channels=tuple(each for each in channels if each is not None),
    )
