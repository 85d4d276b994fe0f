"""A rotated model computes what its source does, for every family that allows it; the others are refused."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.models.cuttable import Cutter
from llmshearing.models.cutting import CutPlan, flatten_masks
from llmshearing.models.families import family_of
from llmshearing.models.family_tables import TABLES
from llmshearing.models.shapes import shape_of, with_shape
from llmshearing.rotation.basis import fixed_positions, principal_basis
from llmshearing.rotation.check import set_final_gain
from llmshearing.rotation.exact import exact_logits
from llmshearing.rotation.folding import common_gain, odd_axes
from llmshearing.rotation.moments import stream_mean_squares, stream_moments
from llmshearing.rotation.rotate import Rotation, rotate_model
from llmshearing.rotation.stream import check_rotatable, stream_parts
from tests.models.tiny import MIXTURES, random_masks, tiny_model
from tests.rotation.models import IDS, NORMED_WRITERS, REFUSED, ROTATABLE, source_model

README = Path(__file__).parents[2] / 'llmshearing' / 'rotation' / 'README.md'


def logits(model) -> torch.Tensor:
    """As transformers computes them; in float64 without its norms' rounding to float32."""
    if model.dtype == torch.float64:
        return exact_logits(model, IDS)
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def rotation_of(model, fixed_axes: int = 6) -> tuple[Rotation, torch.Tensor]:
    """By principal directions; and the gains of the final norm that a tied model computes with."""
    parts = stream_parts(model.config)
    moments = stream_moments(model, [IDS])
    final = parts.final_norm
    gain = model.get_submodule(final.path).weight.detach().double() + final.offset
    if not parts.tied:
        return Rotation(principal_basis(moments.covariance)), gain
    squares = moments.mean_squares()[-1]
    fixed = odd_axes(gain, squares, fixed_axes)
    common = common_gain(gain, fixed)
    return Rotation(principal_basis(moments.covariance, fixed), common), common


def with_final_gain(model, gain: torch.Tensor):
    """The same model with other gains in its final norm."""
    model = copy.deepcopy(model)
    set_final_gain(model, gain)
    return model


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=['float64', 'float32'])
@pytest.mark.parametrize('variant', ROTATABLE)
def test_rotated_model_computes_what_its_source_does(variant, dtype):
    model = source_model(variant, dtype)
    rotation, gain = rotation_of(model)
    expected = logits(with_final_gain(model, gain))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    rotated = rotate_model(copy.deepcopy(model), rotation)
    torch.testing.assert_close(logits(rotated), expected, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-4)
    changed = {name for name, parameter in rotated.named_parameters() if not torch.equal(parameter, before[name])}
    assert {f'{path}.weight' for path in stream_parts(model.config).norm_of} - {'lm_head.weight'} <= changed
    tied = model.config.tie_word_embeddings
    assert rotated.config.tie_word_embeddings == tied
    assert (rotated.lm_head.weight is rotated.model.embed_tokens.weight) == tied


@pytest.mark.parametrize('variant', ['llama-tied', 'gemma'])
def test_untied_on_request_is_exact(variant):
    model = source_model(variant)
    assert model.config.tie_word_embeddings
    rotated = rotate_model(copy.deepcopy(model), Rotation(principal_basis(stream_moments(model, [IDS]).covariance)))
    torch.testing.assert_close(logits(rotated), logits(model), rtol=0, atol=1e-9)
    assert not rotated.config.tie_word_embeddings
    assert rotated.lm_head.weight.data_ptr() != rotated.model.embed_tokens.weight.data_ptr()


def test_readers_keep_their_size_and_norms_hold_one_number():
    model = source_model('llama')
    rotated = rotate_model(copy.deepcopy(model), rotation_of(model)[0])
    for norm in stream_parts(model.config).norms:
        before = sum(model.get_submodule(path).weight.square().sum() for path in norm.readers)
        after = sum(rotated.get_submodule(path).weight.square().sum() for path in norm.readers)
        torch.testing.assert_close(after, before)
        assert len(rotated.get_submodule(norm.path).weight.unique()) == 1


def test_a_tied_model_with_every_axis_fixed_is_exact_and_its_axes_are_only_reordered():
    model = source_model('llama-tied')
    rotation, _ = rotation_of(model, fixed_axes=48)
    assert torch.equal(rotation.basis.abs().sum(0), torch.ones(48, dtype=torch.float64))
    rotated = rotate_model(copy.deepcopy(model), rotation)
    torch.testing.assert_close(logits(rotated), logits(model), rtol=0, atol=1e-9)


def test_fixed_axes_keep_their_gains():
    model = source_model('llama-tied')
    rotation, gain = rotation_of(model, fixed_axes=6)
    fixed = (gain != gain.median()).nonzero().flatten()  # one of the others has the median as its own
    positions = fixed_positions(rotation.basis, fixed)
    rotated = rotate_model(copy.deepcopy(model), rotation)
    torch.testing.assert_close(rotated.model.norm.weight[positions], model.model.norm.weight[fixed])
    assert len(fixed) == 6 and len(rotated.model.norm.weight.detach().round(decimals=9).unique()) == 7


@pytest.mark.parametrize('variant', REFUSED)
def test_other_families_are_refused_with_the_reason_and_what_to_do(variant):
    config = tiny_model(variant).config
    reason = 'come.* out of norms' if variant in NORMED_WRITERS else 'LayerNorms'
    reason = 'mixture of experts' if variant in MIXTURES else reason
    with pytest.raises(ValueError, match=f'{config.model_type}.*{reason}.*scores'):
        check_rotatable(config)


def test_the_readme_lists_every_family_that_is_refused():
    rows = [line.split('|') for line in README.read_text().splitlines() if line.startswith('| ')]
    listed = {cells[1].strip(): set(re.findall(r'`(\w+)`', cells[2])) - {'use_post_norm'} for cells in rows}
    known = {name.partition('-')[0] for name in TABLES}
    for why, reason in (('write through', 'out of norms'), ('LayerNorms', 'LayerNorms'), ('experts', 'mixture')):
        (row,) = (names for text, names in listed.items() if why in text)
        assert row <= known or not TRANSFORMERS_5  # which has all of them
        assert row & known == {
            name.partition('-')[0] for name, table in TABLES.items() if reason in (table.why_not_rotatable or '')
        }


def test_nan_in_the_source_is_refused_by_name():
    model = source_model('llama')
    rotation, _ = rotation_of(model)
    model.model.layers[2].mlp.up_proj.weight.data[3, 4] = float('nan')
    with pytest.raises(ValueError, match=r'model\.layers\.2\.mlp\.up_proj\.weight .*NaN'):
        rotate_model(model, rotation)


def test_products_are_not_made_in_half_precision():
    exact = source_model('llama', torch.float32)
    half = copy.deepcopy(exact).to(torch.bfloat16)
    exact.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    rotation, _ = rotation_of(exact)
    rotate_model(exact, rotation)
    rotate_model(half, rotation)
    for (name, a), b in zip(exact.named_parameters(), half.parameters()):
        if 'norm' not in name:
            torch.testing.assert_close(b, a.bfloat16(), rtol=2**-7, atol=1e-6, msg=name)
        if 'o_proj' in name or 'down_proj' in name:  # readers are divided by a gain that is rounded, too
            assert (b != a.bfloat16()).float().mean() < 0.01, name  # float32 rounds a few in a thousand the other way


@pytest.mark.parametrize('variant', ['llama', 'gemma', 'qwen2'])
def test_masked_equals_exported_on_a_rotated_model(variant):
    model = source_model(variant, torch.float32)
    rotate_model(model, rotation_of(model)[0])
    shape = shape_of(model.config)
    masks = random_masks(shape, ('hidden',))
    plan = CutPlan(family_of(model.config), shape, masks)
    tensors = {
        f'{path}.{name}': tensor
        for path, cut in plan.cuts(flatten_masks(masks))
        for name, tensor in cut.parameters(dict(model.get_submodule(path).named_parameters(recurse=False))).items()
    }
    kept = int((masks['hidden'] > 0).sum())
    small = with_shape(model.config, dataclasses.replace(shape, hidden_size=kept))
    exported = AutoModelForCausalLM.from_config(small).eval()
    with torch.no_grad():
        for name, parameter in exported.named_parameters():
            parameter.copy_(tensors[name])
    Cutter(model).set_masks(masks)
    torch.testing.assert_close(logits(model), logits(exported), rtol=0, atol=1e-5)


def test_energy_of_the_rotated_stream_falls():
    model = source_model('llama')
    rotation, _ = rotation_of(model)
    along = stream_mean_squares(model, [IDS], rotation.basis)
    rotated = stream_mean_squares(rotate_model(copy.deepcopy(model), rotation), [IDS])
    torch.testing.assert_close(rotated, along, rtol=1e-5, atol=1e-6)
    total = rotated.sum(0)
    assert (total[1:] <= total[:-1] + 1e-9).all()
