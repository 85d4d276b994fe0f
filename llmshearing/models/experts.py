"""The cut of all routed experts of a layer where they are parameters of three dimensions (transformers 5).

It is what :mod:`~llmshearing.models.cutting` does to each expert's projections, done to all of them at once: experts
that go lose their slice, and the router its row, so they are out of the softmax and of the top-k. What an expert adds
is multiplied by its mask: the rows of its down projection, and its bias, by that of the expert, of the hidden
dimension and of the layer; the columns by those of its intermediate dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.models.mixtures import ALIGNED_EXPERTS
from llmshearing.models.roles import Experts

__all__ = ['ExpertsCut']


@dataclasses.dataclass(frozen=True)
class ExpertsCut:
    """The cut of one module of experts.

    Attributes:
        role (Experts): How it holds them.
        width (int): Intermediate dimensions of an expert of the source.
        experts (Tensor | None): Kept experts, int64 [kept experts]; None keeps all.
        hidden (Tensor | None): Kept hidden dimensions, int64 [kept]; None keeps all.
        dimensions (Tensor | None): Kept intermediate dimensions of each kept expert, int64 [kept experts, kept].
        row_scale (Tensor | None): Of what each expert adds, float32 [kept experts or 1, kept hidden].
        inner_scale (Tensor | None): Of its intermediate dimensions, float32 [kept experts, kept].
    """

    role: Experts
    width: int
    experts: Tensor | None = None
    hidden: Tensor | None = None
    dimensions: Tensor | None = None
    row_scale: Tensor | None = None
    inner_scale: Tensor | None = None

    def parameters(self, full: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The cut parameters, from the full ones by name."""
        kept = {name: tensor for name, tensor in full.items() if tensor is not None}
        if self.experts is not None:
            kept = {name: tensor.index_select(0, self.experts) for name, tensor in kept.items()}
        inner, outer = (2, 1) if self.role.transposed else (1, 2)
        fused = self._fused()
        cut = {
            'gate_up_proj': _take(_take(kept['gate_up_proj'], outer, self.hidden), inner, fused),
            'down_proj': _take(_take(kept['down_proj'], inner, self.hidden), outer, self.dimensions),
        }
        cut['down_proj'] = _scaled(
            cut['down_proj'],
            None if self.row_scale is None else self.row_scale.unsqueeze(outer),
            None if self.inner_scale is None else self.inner_scale.unsqueeze(inner),
        )
        if 'gate_up_proj_bias' in kept:
            cut['gate_up_proj_bias'] = _take(kept['gate_up_proj_bias'], 1, fused)
        if 'down_proj_bias' in kept:
            cut['down_proj_bias'] = _scaled(_take(kept['down_proj_bias'], 1, self.hidden), self.row_scale)
        return cut

    def aligned(self, hidden_size: int) -> tuple[ExpertsCut, int]:
        """This cut with a hidden size that kernels take, and how many dimensions were added for that, none of a scale.

        Whoever computes with it adds as many zeros to the input and takes as many numbers off the output.
        """
        added = -hidden_size % ALIGNED_EXPERTS
        if self.hidden is None or not added:
            return self, 0
        hidden = torch.cat([self.hidden, self.hidden[:1].expand(added)])
        scale = None if self.row_scale is None else torch.nn.functional.pad(self.row_scale, (0, added))
        return dataclasses.replace(self, hidden=hidden, row_scale=scale), added

    def _fused(self) -> Tensor | None:
        """Positions of the kept dimensions in the joint gate and up projection, int64 [kept experts, 2 x kept]."""
        if self.dimensions is None:
            return None
        if self.role.interleaved:
            return torch.stack([2 * self.dimensions, 2 * self.dimensions + 1], -1).flatten(1)
        return torch.cat([self.dimensions, self.dimensions + self.width], 1)


def _take(tensor: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """Positions along a dimension: the same ones for all experts, or [experts, positions]."""
    if index is None:
        return tensor
    if index.dim() == 1:
        return tensor.index_select(dim, index)
    shape = [len(index), *[1] * (tensor.dim() - 1)]
    shape[dim] = index.shape[1]
    return torch.take_along_dim(tensor, index.view(shape), dim)


def _scaled(tensor: Tensor, *scales: Tensor | None) -> Tensor:
    """Multiplied in float32 and rounded once."""
    product = tensor
    for scale in scales:
        product = product if scale is None else product * scale
    return product.to(tensor.dtype)
