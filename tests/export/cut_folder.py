"""Model folders as an export writes them, for tests and for benchmarks on machines without pytest."""

import torch

from llmshearing.export.model_folder import cut_tensors, exported_config, full_tensors, shape_left, write_model_folder
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.models.cutting import CutPlan
from llmshearing.models.families import family_of
from llmshearing.models.shapes import shape_of
from llmshearing.models.units import mask_shapes

AXES = ('hidden', 'layer', 'head', 'kv_group', 'intermediate')


def uniform_soft_masks(config, axes, seed=0):
    """Random soft masks that leave the same numbers in every layer, and layers of the kinds their new places expect."""
    shape, generator = shape_of(config), torch.Generator().manual_seed(seed)
    keep = {'hidden': 36, 'layer': 2, 'head': 2 if shape.group_size > 1 else 4, 'kv_group': 1, 'intermediate': 40}
    if shape.num_experts:
        keep |= {'hidden': 40, 'expert': 4}  # experts are computed by kernels that take multiples of 8 alone
        axes = [*axes, 'expert'] if set(axes) == set(AXES) else axes
    if shape.group_size == 1:
        axes = [axis for axis in axes if axis != 'kv_group'] or ['head']
    if not family_of(config).has_head_dim and {'hidden', 'head'} & set(axes):
        axes = [*{'hidden', 'head', *axes}]  # hidden_size is heads x head_dim here
        keep['hidden'] = 32
    masks = {}
    for axis in axes:
        size = mask_shapes(shape)[axis]
        units = {'head': shape.group_size, 'intermediate': shape.intermediate_size}.get(axis, size[-1])
        units = size[-1] if units == 1 else units
        rows = torch.rand(size, generator=generator).reshape(-1, units)
        top = rows.argsort(dim=1, descending=True)[:, : keep[axis]]
        mask = torch.zeros_like(rows).scatter_(1, top, 0.3 + 0.7 * torch.rand(top.shape, generator=generator))
        masks[axis] = mask.reshape(size)
    if 'layer' in masks:
        masks['layer'] = torch.tensor([0.9, 0.0, 0.0, 0.7])  # kinds alternate in some families
    return masks


def export(model, masks, folder, dtype=torch.float32, **writer_settings):
    """Writes the model under masks with the functions that the callback uses."""
    plan = CutPlan(family_of(model.config), shape_of(model.config), masks)
    config = exported_config(model.config, plan, dtype)
    with ModelFolderWriter(folder, **writer_settings) as writer:
        tensors = cut_tensors(plan, full_tensors(model), model.config.tie_word_embeddings)
        write_model_folder(writer, config, tensors, None, {}, dtype)
        writer.commit()
    return shape_left(model.config, plan)
