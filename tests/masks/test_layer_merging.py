"""Layers that go, merged into the MLP before them: the formula, for every family, and who it does not apply to."""

import pytest
import torch

from llmshearing.masks.compensation import RIDGE, Compensation
from llmshearing.masks.layer_merging import find_gaps, mlp_writer
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.models.tiny import VARIANTS
from tests.tiny_run import sequences_spec, tiny_source, tiny_tokenizer

LAYERS = {'layer': torch.tensor([1.0, 0.0, 0.0, 1.0])}
# Where a norm stands between the MLP and the stream, or experts do.
WITHOUT = {
    'gemma2',
    'gemma3_text',
    'glm4',
    'olmo2',
    'olmo3',
    'exaone4',
    'hyperclovax',
    'granitemoehybrid-experts',
    'mixtral',
    'qwen3_moe',
    'olmoe',
    'qwen2_moe',
    'gpt_oss',
    'qwen3_next',
    'qwen3_5_moe_text',
}


def model_of(tmp_path, variant='llama', **overrides):
    overrides = {'num_hidden_layers': 4, **overrides}
    return ShearedCausalLM(tiny_tokenizer(), str(tiny_source(tmp_path / 'source', variant, **overrides))).eval()


def batch_of(sequences=12):
    return next(iter(sequences_spec(sequences, sequences, seed=3).dataloader))


def merge(model, batch, masks=LAYERS, **settings):
    """Changes the weights for layers that go; returns what watched."""
    model.cutter.set_masks({axis: torch.ones_like(mask) for axis, mask in masks.items()})
    watching = Compensation(model.cutter, masks, coming=masks, **settings)
    with torch.no_grad():
        model(batch)
    watching.stop()
    watching.apply(masks)
    return watching


def see(model, batch):
    """Streams after the layers, and what the projection that writes the first MLP's output reads."""
    family, seen = model.cutter.family, {}
    layers = model.model.get_submodule(f'{family.decoder}.layers')

    def keep(name):
        def hook(module, inputs, out):
            seen[name] = (out[0] if isinstance(out, tuple) else out).flatten(0, -2)

        return hook

    handles = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(layers.children())]
    writer = layers.get_submodule(f'0.{mlp_writer(family, 0)}')
    handles.append(writer.register_forward_hook(lambda module, inputs, out: keep('inside')(None, None, inputs[0])))
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return seen, f'{family.decoder}.layers.0.{mlp_writer(family, 0)}.weight'


@pytest.mark.parametrize(
    ('kept', 'gaps'),
    [
        ('1111', []),
        ('1011', [(0, 1)]),
        ('1001', [(0, 2)]),
        ('0011', []),
        ('0100', [(1, 3)]),
        ('10110010', [(0, 1), (3, 5), (6, 7)]),
    ],
)
def test_gaps(kept, gaps):
    assert find_gaps([letter == '1' for letter in kept]) == gaps


@pytest.mark.parametrize('variant', sorted(set(VARIANTS) - WITHOUT))
def test_what_layers_added_is_regressed_on_the_inside_of_the_mlp_before_them(tmp_path, variant):
    model, batch = model_of(tmp_path, variant), batch_of()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    seen, name = see(model, batch)
    merge(model, batch)
    after = model.model.state_dict()
    x, added = seen['inside'].double(), (seen[2] - seen[0]).double()
    squares = x.T @ x
    squares += torch.eye(len(squares)) * RIDGE * len(squares) / len(x) * squares.diagonal().mean()
    want = torch.linalg.solve(squares, x.T @ added).T / getattr(model.model.config, 'residual_multiplier', 1.0)
    torch.testing.assert_close(after[name] - before[name], want.float(), rtol=2e-3, atol=2e-4)
    for other, value in after.items():
        assert other == name or torch.equal(value, before[other]), other
    # The stream without the layers is nearer to the one with them than it would be as it was.
    model.cutter.set_masks(LAYERS)
    without = see(model, batch)[0][0]
    assert (without - seen[2]).square().sum() < 0.97 * (seen[0] - seen[2]).square().sum()


@pytest.mark.parametrize('variant', sorted(WITHOUT & set(VARIANTS)))
def test_families_without_a_place_for_them_are_left_as_they_are(tmp_path, variant):
    model, batch = model_of(tmp_path, variant), batch_of()
    assert mlp_writer(model.cutter.family, 0) is None
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    merge(model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_the_first_layers_have_no_mlp_before_them(tmp_path):
    model, batch = model_of(tmp_path), batch_of()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    merge(model, batch, {'layer': torch.tensor([0.0, 0.0, 1.0, 1.0])})
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_only_so_many_tokens_are_looked_at(tmp_path):
    model, batch = model_of(tmp_path), batch_of()
    watching = merge(model, batch, tokens=40)
    assert [gap.tokens for gap in watching._merging._gaps] == [40]


def test_micro_batches_add_up(tmp_path):
    changes = []
    for number, parts in enumerate((1, 3)):
        model, batch = model_of(tmp_path / str(number)), batch_of()
        before = model.model.model.layers[0].mlp.down_proj.weight.clone()
        model.cutter.set_masks({'layer': torch.ones(4)})
        watching = Compensation(model.cutter, LAYERS, coming=LAYERS)
        with torch.no_grad():
            for rows in torch.arange(12).chunk(parts):
                model({key: value[rows] for key, value in batch.items()})
        watching.stop()
        watching.apply(LAYERS)
        changes.append(model.model.model.layers[0].mlp.down_proj.weight - before)
    torch.testing.assert_close(changes[1], changes[0], rtol=1e-3, atol=1e-5)


def test_what_goes_with_the_layers_is_made_up_for_after_them(tmp_path):
    """Intermediate dimensions that go at once carry their share of the merged layers to those that stay."""
    model, batch = model_of(tmp_path), batch_of()
    masks = {**LAYERS, 'intermediate': (torch.arange(64) < 40).float().repeat(4, 1)}
    seen, name = see(model, batch)
    merge(model, batch, masks)
    model.cutter.set_masks(masks)
    with_both = see(model, batch)[0][0]
    other = model_of(tmp_path / 'other')
    merge(other, batch, {'intermediate': masks['intermediate']})
    other.cutter.set_masks(masks)
    with_widths = see(other, batch)[0][0]
    assert (with_both - seen[2]).square().sum() < (with_widths - seen[2]).square().sum()
