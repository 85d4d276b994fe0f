"""What others have measured of the choice of a shape, said where a target does otherwise.

It is guidance, not law: `llmshearing search` measures it for one source and one kind of text.

Sources: width keeps more than depth at equal parameters, and depth is faster: Sreenivas et al. 2024 (arXiv 2408.11796).
Heads last, and several rounds for small targets: Muralidharan et al. 2024 (arXiv 2407.14679). Fewer layers cost
reasoning before they cost knowledge: Gromov et al. 2024 (arXiv 2403.17887).
"""

from __future__ import annotations

from llmshearing.models.shapes import ModelShape

__all__ = ['shape_guidance']

MUCH = 0.15  # an axis goes first where it loses this much more of its share than another


def shape_guidance(source: ModelShape, target: ModelShape, kept: float) -> list[str]:
    """Sentences on a target, each with where it is from; ``kept`` is the share of the parameters that stay."""
    layers, hidden, heads, intermediate = (
        getattr(target, key) / getattr(source, key)
        for key in ('num_hidden_layers', 'hidden_size', 'num_attention_heads', 'intermediate_size')
    )
    said = []
    if layers < min(hidden, intermediate) - MUCH:
        said.append(
            f'{1 - layers:.0%} of the layers go: at equal parameters, width keeps more than depth and depth is faster '
            '(arXiv 2408.11796); reasoning suffers first from missing layers (arXiv 2403.17887).'
        )
    if heads < min(hidden, intermediate) - MUCH:
        said.append(
            f'{1 - heads:.0%} of the heads go: intermediate dimensions before hidden ones before heads costs less '
            '(arXiv 2407.14679).'
        )
    if kept < 0.5:
        said.append(
            f'{1 - kept:.0%} of the parameters go in one step: more than half of a model wants stages, each cut '
            'followed by training (arXiv 2407.14679).'
        )
    return [f'guidance: {each} `llmshearing search` compares shapes of this size.' for each in said]
