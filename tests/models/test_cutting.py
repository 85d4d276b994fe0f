"""The masked forward pass against a LLaMA with multiplied activations: logits, gradients, corner cases."""

import itertools

import pytest
import torch

from llmshearing.models.cuttable import Cutter
from llmshearing.models.gains import stream_norms
from llmshearing.models.module_cut import cut_weight
from llmshearing.models.shapes import shape_of
from llmshearing.models.units import mask_shapes
from tests.models.reference import masked_llama_logits
from tests.models.tiny import VARIANTS, random_masks, tiny_model

AXES = ('hidden', 'layer', 'head', 'kv_group', 'intermediate')
SUBSETS = [subset for size in (1, 2, 5) for subset in itertools.combinations(AXES, size)]


def input_ids(seed=1, batch=2, length=11):
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def loss_of(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize('axes', SUBSETS, ids='+'.join)
@pytest.mark.parametrize('variant', ['llama', 'llama-mha', 'llama-tied', 'llama-biases'])
def test_logits_and_gradients_equal_the_activation_masked_reference(variant, axes):
    model = tiny_model(variant)
    reference = tiny_model(variant)
    masks = random_masks(shape_of(model.config), axes, seed=len(axes))
    ids = input_ids()
    leaves = {axis: mask.clone().requires_grad_() for axis, mask in masks.items()}
    expected = masked_llama_logits(reference, ids, leaves)
    loss_of(expected, ids).backward()

    cutter = Cutter(model)
    cutter.set_masks(masks)
    logits = model(ids).logits
    loss_of(logits, ids).backward()

    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for (name, got), want in zip(model.named_parameters(), reference.parameters()):
        got = torch.zeros_like(want) if got.grad is None else got.grad
        want = torch.zeros_like(want) if want.grad is None else want.grad
        torch.testing.assert_close(
            got, want, atol=1e-5 * want.abs().max().item() + 1e-8, rtol=1e-5, msg=lambda m: f'{name}: {m}'
        )
    gradients = cutter.mask_gradients()
    for axis, leaf in leaves.items():
        kept = masks[axis] != 0  # a zero mask's gradient is stopped by the clamp of the gate, and layers are not run
        want = leaf.grad[kept]
        torch.testing.assert_close(gradients[axis][kept], want, atol=1e-5 * want.abs().max().item() + 1e-8, rtol=1e-5)


def test_without_masks_the_model_is_untouched():
    model, stock = tiny_model(), tiny_model()
    names = [name for name, _ in model.named_parameters()]
    cutter = Cutter(model)
    assert [name for name, _ in model.named_parameters()] == names
    ids = input_ids()
    assert torch.equal(model(ids).logits, stock(ids).logits)
    cutter.set_masks(random_masks(cutter.shape, AXES))
    assert not torch.equal(model(ids).logits, stock(ids).logits)
    cutter.set_masks(None)
    assert torch.equal(model(ids).logits, stock(ids).logits)


def test_all_kept_at_one_is_the_source():
    model, stock = tiny_model(), tiny_model()
    cutter = Cutter(model)
    cutter.set_masks({axis: torch.ones_like(mask) for axis, mask in random_masks(cutter.shape, AXES).items()})
    ids = input_ids()
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, atol=1e-6, rtol=0)


def checked_logits(masks):
    """Those of the model under masks, which are the reference's."""
    model, ids = tiny_model(), input_ids()
    Cutter(model).set_masks(masks)
    logits = model(ids).logits
    torch.testing.assert_close(logits, masked_llama_logits(tiny_model(), ids, masks), atol=1e-5, rtol=0)
    return logits


@pytest.mark.parametrize('emptied', ['head', 'kv_group', 'intermediate', 'layer'])
def test_a_layer_or_half_of_it_may_be_empty(emptied):
    masks = random_masks(shape_of(tiny_model().config), AXES, keep=0.9)
    masks[emptied][0 if emptied != 'layer' else slice(None)] = 0.0
    checked_logits(masks).sum().backward()


def test_uneven_heads_per_group_are_padded_without_effect():
    head = torch.ones(4, 6)
    head[0, 1:3] = 0.0  # group 0 keeps one head, group 1 keeps three
    checked_logits({'head': head})


def test_rounding_counts_up_changes_no_result():
    model = tiny_model()
    cutter = Cutter(model)
    masks = random_masks(cutter.shape, AXES)
    ids = input_ids()
    cutter.set_masks(masks)
    exact = model(ids).logits
    cutter.set_masks(masks, multiple_of=16)
    assert cutter.plan.units.layers[0].intermediate is None or len(cutter.plan.units.layers[0].intermediate) % 16 == 0
    torch.testing.assert_close(model(ids).logits, exact, atol=1e-5, rtol=0)


def test_micro_batches_accumulate_mask_gradients():
    model = tiny_model()
    cutter = Cutter(model)
    masks = random_masks(cutter.shape, AXES)
    ids = input_ids(batch=4)
    cutter.set_masks(masks)
    loss_of(model(ids).logits, ids).backward()
    whole = cutter.mask_gradients()
    cutter.set_masks(masks)
    for part in ids.split(2):
        (loss_of(model(part).logits, part) / 2).backward()
    for axis, gradient in cutter.mask_gradients().items():
        torch.testing.assert_close(gradient, whole[axis], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('variant', VARIANTS)
def test_constant_masks_compute_the_same_bits_and_learn_nothing(variant):
    results = []
    for constant in (False, True):
        model = tiny_model(variant)
        cutter = Cutter(model)
        axes = sorted(set(mask_shapes(cutter.shape)) - {'expert'})
        masks = {axis: (mask > 0).float() for axis, mask in random_masks(cutter.shape, axes).items()}
        generator = torch.Generator().manual_seed(3)
        cutter.norm_energies = torch.rand(
            len(stream_norms(cutter.family, cutter.shape.num_hidden_layers)),
            cutter.shape.hidden_size,
            generator=generator,
        )
        cutter.set_masks(masks, constant=constant)
        logits = model(input_ids(), use_cache=False).logits
        loss_of(logits, input_ids()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((logits, gradients, cutter.mask_gradients()))
    (learned, want, _), (constant, got, mask_gradients) = results
    assert torch.equal(learned, constant) and want.keys() == got.keys()
    for name, gradient in want.items():
        assert torch.equal(gradient, got[name]), name
    assert not any(gradient.any() for gradient in mask_gradients.values())


def test_constant_masks_are_installed_once_and_soft_ones_scale():
    model = tiny_model()
    cutter, ids = Cutter(model), input_ids()
    soft = random_masks(cutter.shape, AXES)
    cutter.set_masks(soft)
    want = model(ids).logits
    cutter.set_masks(soft, constant=True)
    plan = cutter.plan
    torch.testing.assert_close(model(ids).logits, want, rtol=0, atol=0)
    cutter.set_masks({axis: mask.clone() for axis, mask in soft.items()}, constant=True)
    assert cutter.plan is plan
    hard = {axis: (mask > 0).float() for axis, mask in soft.items()}
    cutter.set_masks(hard, constant=True)
    assert cutter.plan is not plan and not torch.allclose(model(ids).logits, want)
    cutter.set_masks(soft)
    torch.testing.assert_close(model(ids).logits, want, rtol=0, atol=0)
    cutter.set_masks(None)
    cutter.set_masks(soft, constant=True)
    assert torch.equal(model(ids).logits, want)


def test_gradient_checkpointing_of_layers_gives_the_same_gradients():
    gradients = []
    for checkpoint in (False, True):
        model = tiny_model().train()
        cutter = Cutter(model)
        if checkpoint:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
        cutter.set_masks(random_masks(cutter.shape, AXES))
        ids = input_ids()
        loss_of(model(ids, use_cache=False).logits, ids).backward()
        gradients.append((cutter.mask_gradients(), model.model.layers[0].self_attn.o_proj.weight.grad))
    for axis in AXES:
        torch.testing.assert_close(gradients[0][0][axis], gradients[1][0][axis])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_cut_weight_derivatives_by_finite_differences():
    torch.manual_seed(0)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    rows, columns = torch.tensor([0, 3, 4]), torch.tensor([1, 3])
    row_scale = torch.rand(3, dtype=torch.float64, requires_grad=True)
    column_scale = torch.rand(2, dtype=torch.float64, requires_grad=True)
    composed = weight[rows][:, columns] * row_scale[:, None] * column_scale
    torch.testing.assert_close(cut_weight(weight, rows, columns, row_scale, column_scale), composed)
    for used_rows, used_columns, r, c in itertools.product((rows, None), (columns, None), (True, False), (True, False)):
        r = torch.rand(5 if used_rows is None else 3, dtype=torch.float64, requires_grad=True) if r else None
        c = torch.rand(4 if used_columns is None else 2, dtype=torch.float64, requires_grad=True) if c else None
        upstream = torch.randn_like(cut_weight(weight, used_rows, used_columns, r, c))
        inputs = [t for t in (weight, r, c) if t is not None]
        got = torch.autograd.grad((cut_weight(weight, used_rows, used_columns, r, c) * upstream).sum(), inputs)
        plain = weight if used_rows is None else weight[used_rows]
        plain = plain if used_columns is None else plain[:, used_columns]
        plain = plain if r is None else plain * r[:, None]
        plain = plain if c is None else plain * c
        for got_one, want in zip(got, torch.autograd.grad((plain * upstream).sum(), inputs)):
            torch.testing.assert_close(got_one, want, atol=1e-6, rtol=1e-6)


def test_wrong_masks_are_refused_by_name():
    cutter = Cutter(tiny_model())
    with pytest.raises(ValueError, match="unknown mask axis 'width'"):
        cutter.set_masks({'width': torch.ones(4)})
    with pytest.raises(ValueError, match=r"mask 'head' has shape \(4, 4\), expected \(4, 6\)"):
        cutter.set_masks({'head': torch.ones(4, 4)})
    with pytest.raises(ValueError, match='keeps no dimension'):
        cutter.set_masks({'hidden': torch.zeros(48)})
    assert cutter.masks is None and cutter.plan is None
