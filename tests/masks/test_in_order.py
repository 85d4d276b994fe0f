"""Compensation in running order: every projection solves its regression, for every family, whatever goes."""

import pytest
import torch

from llmshearing.export.model_folder import open_strictly
from llmshearing.masks import in_order
from llmshearing.masks.energies import norm_energies
from llmshearing.masks.in_order import compensate_in_order
from llmshearing.masks.scores import Calibration
from llmshearing.models.cuttable import Cutter
from llmshearing.models.roles import Linear, Norm
from llmshearing.models.units import mask_shapes
from tests.models.tiny import VARIANTS
from tests.tiny_run import sequences_spec, tiny_source

AXES = ('layer', 'hidden', 'kv_group', 'intermediate')
LAYERS = 4
# Attention and MLP run side by side, or two MLPs do.
OWN_OUTPUT = {'gpt_neox', 'granitemoehybrid-experts'}


def cutter_of(tmp_path, variant='llama', **overrides):
    source = tiny_source(tmp_path / 'source', variant, num_hidden_layers=LAYERS, **overrides)
    return Cutter(open_strictly(source).requires_grad_(False).eval())


def batches_of(*sizes):
    batch = next(iter(sequences_spec(sum(sizes), sum(sizes), seed=3).dataloader))
    parts = {name: value.split(sizes) for name, value in batch.items()}
    return [{name: parts[name][number] for name in parts} for number in range(len(sizes))]


def masks_for(cutter, axes=AXES):
    """The third layer goes, and every third unit of the widths in another place in each layer."""
    masks = {}
    for axis, size in mask_shapes(cutter.shape).items():
        if axis in axes:
            masks[axis] = torch.ones(size)
            if axis == 'layer':
                masks[axis][2] = 0
            elif axis == 'kv_group' and cutter.shape.num_key_value_heads > 1:
                masks[axis][:, 0] = 0
            elif axis in ('hidden', 'intermediate'):
                masks[axis][..., ::3] = 0
    return masks


def watch(cutter, masks, batches):
    """What every module of every layer reads and gives under masks, [tokens, size] by path."""
    read, given, handles = {}, {}, []

    def keep(path):
        def hook(module, inputs, options, out):
            x = inputs[0] if inputs else options['hidden_states']
            read.setdefault(path, []).append(x.flatten(0, -2))
            given.setdefault(path, []).append((out[0] if isinstance(out, tuple) else out).flatten(0, -2))

        return hook

    for layer in range(LAYERS):
        start = cutter.family.layer_path(layer)
        for path in [
            start,
            *(f'{start}.{name}' for name, role in cutter.family.roles(layer) if isinstance(role, (Linear, Norm))),
        ]:
            handles.append(cutter.model.get_submodule(path).register_forward_hook(keep(path), with_kwargs=True))
    cutter.set_masks(masks)
    with torch.no_grad():
        for batch in batches:
            cutter.model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(x).double() for path, x in read.items()}, {
        path: torch.cat(x).double() for path, x in given.items()
    }


@pytest.mark.parametrize('variant', sorted(VARIANTS))
def test_every_projection_solves_its_regression_on_what_the_cut_model_gives_it(tmp_path, variant):
    cutter, batches = cutter_of(tmp_path, variant), batches_of(3, 3)
    masks = masks_for(cutter)
    before = {name: value.clone() for name, value in cutter.model.state_dict().items()}
    cutter.norm_energies = norm_energies(Calibration(cutter, batches))
    source, _ = watch(cutter, None, batches)
    source_given = _
    compensate_in_order(Calibration(cutter, batches), masks)
    assert cutter.masks is None
    after = cutter.model.state_dict()
    cut, cut_given = watch(cutter, masks, batches)
    hidden = torch.nonzero(masks['hidden']).flatten()
    multiplier = getattr(cutter.model.config, 'residual_multiplier', 1.0)
    cuts, compared, writers = dict(cutter.plan.cuts()), 0, 0
    for layer in (0, 1, 3):
        start, roles = cutter.family.layer_path(layer), dict(cutter.family.roles(layer))
        middle = [n for n, role in roles.items() if isinstance(role, Norm) and role.reads and role.feeds == 'mlp']
        for name, role in roles.items():
            path = f'{start}.{name}'
            if not isinstance(role, Linear) or role.expert is not None or path not in cut:
                continue
            x, y, w = source[path], cut[path], before[f'{path}.weight'].double()
            rows, columns = cuts[path].rows, cuts[path].columns
            rows = torch.arange(len(w)) if rows is None else rows
            columns = torch.arange(w.shape[1]) if columns is None else columns
            change = after[f'{path}.weight'].double()[rows][:, columns] - w[rows][:, columns]
            residual = x @ w[rows].T - y @ w[rows][:, columns].T
            of_mlp = name.startswith(f'{cutter.family.mlp}.')
            if role.writes and of_mlp and not cutter.family.has_experts:
                behind = cutter.family.layer_path(2 if layer == 1 else layer)  # the third layer goes
                residual = source_given[behind][:, hidden] - cut_given[start] + multiplier * y @ change.T
                residual, writers = residual / multiplier, writers + 1
            elif role.writes and middle and not of_mlp and variant not in OWN_OUTPUT:
                read_by = f'{start}.{middle[0]}'
                residual = source[read_by][:, hidden] - cut[read_by] + multiplier * y @ change.T
                residual, writers = residual / multiplier, writers + 1
            squares = y.T @ y
            squares += torch.eye(len(squares)) * in_order.RIDGE * len(squares) * squares.diagonal().mean()
            want = torch.linalg.solve(squares, y.T @ residual).T
            torch.testing.assert_close(
                change, want, rtol=5e-3, atol=2e-4, msg=lambda text, path=path: f'{path}: {text}'
            )
            compared += 1
    assert compared >= 9
    touched = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(f'{cutter.family.layer_path(2)}.') for name in touched)


def weights_after(tmp_path, batches, masks=None, **settings):
    cutter = cutter_of(tmp_path)
    compensate_in_order(Calibration(cutter, batches, **settings), masks_for(cutter) if masks is None else masks)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in cutter.model.modules())
    return cutter.model.state_dict()


def test_micro_batches_add_up(tmp_path):
    whole, parts = weights_after(tmp_path / '1', batches_of(12)), weights_after(tmp_path / '2', batches_of(5, 4, 3))
    again = weights_after(tmp_path / '3', batches_of(12), microbatch_size=4)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(again[name], tensor, rtol=1e-3, atol=1e-4)


def test_only_so_many_tokens_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(in_order, 'TOKENS', 4 * 16)
    batches = batches_of(4, 4)
    assert batches[0]['input_ids'].numel() == 4 * 16
    some, looked_at = weights_after(tmp_path / '1', batches[:1]), weights_after(tmp_path / '2', batches)
    assert all(torch.equal(tensor, some[name]) for name, tensor in looked_at.items())


def logits_of(cutter, masks, batches):
    cutter.set_masks(masks)
    with torch.no_grad():
        return torch.cat([cutter.model(**batch, use_cache=False).logits for batch in batches])


@pytest.mark.parametrize('axes', [('layer',), ('hidden',), ('kv_group',), ('intermediate',), AXES], ids=str)
def test_the_cut_model_is_nearer_to_the_source_along_every_axis(tmp_path, axes):
    cutter, batches = cutter_of(tmp_path), batches_of(48)
    masks = masks_for(cutter, axes)
    if 'hidden' in axes:
        cutter.norm_energies = norm_energies(Calibration(cutter, batches))
    source = logits_of(cutter, None, batches)
    plain = (logits_of(cutter, masks, batches) - source).square().mean()
    compensate_in_order(Calibration(cutter, batches), masks)
    assert (logits_of(cutter, masks, batches) - source).square().mean() < 0.8 * plain


def test_layers_before_the_first_that_stays_are_passed_by(tmp_path):
    cutter, batches = cutter_of(tmp_path), batches_of(6)
    before = {name: value.clone() for name, value in cutter.model.state_dict().items()}
    compensate_in_order(Calibration(cutter, batches), {'layer': torch.tensor([0.0, 0.0, 1.0, 1.0])})
    changed = {name for name, value in cutter.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(('model.layers.2', 'model.layers.3', 'lm_head')) for name in changed)


@pytest.mark.parametrize('tied', [True, False])
def test_a_head_that_is_the_embedding_stays_as_it_is(tmp_path, tied):
    cutter = cutter_of(tmp_path, tie_word_embeddings=tied)
    before = cutter.model.lm_head.weight.clone()
    compensate_in_order(Calibration(cutter, batches_of(6)), masks_for(cutter))
    assert torch.equal(cutter.model.lm_head.weight, before) == tied


def test_nothing_changes_where_nothing_goes(tmp_path):
    cutter = cutter_of(tmp_path)
    before = {name: value.clone() for name, value in cutter.model.state_dict().items()}
    compensate_in_order(Calibration(cutter, batches_of(6)), {'intermediate': torch.ones(LAYERS, 64)})
    for name, value in cutter.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5)


def test_weights_of_lower_precision_are_fitted_as_those_of_full_precision(tmp_path):
    """As far as half precision can tell: streams and what is read are rounded in it."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        cutter = cutter_of(tmp_path / str(dtype))
        cutter.model.to(dtype)
        compensate_in_order(Calibration(cutter, batches_of(12)), masks_for(cutter))
        results.append(cutter.model.get_parameter('model.layers.0.mlp.down_proj.weight').float())
    assert (results[1] - results[0]).norm() < 0.1 * results[0].norm()


def test_a_projection_that_reads_nothing_but_zeros_stays_as_it_is(tmp_path):
    cutter = cutter_of(tmp_path)
    mlp = cutter.model.model.layers[0].mlp
    mlp.up_proj.weight.zero_()
    before = mlp.down_proj.weight.clone()
    masks = masks_for(cutter)
    masks['hidden'].fill_(1)
    compensate_in_order(Calibration(cutter, batches_of(6)), masks)
    assert torch.equal(mlp.down_proj.weight, before)
    assert all(value.isfinite().all() for value in cutter.model.state_dict().values())
