"""Masks of routed experts against mixtures with multiplied outputs and closed routers, and the corners of a cut."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from llmshearing.compat.experts import expert_matrices
from llmshearing.export.model import export_model
from llmshearing.export.model_folder import open_strictly
from llmshearing.models import cuttable, experts
from llmshearing.models.counting import active_parameters, count_parameters, layout_of, training_flops_per_token
from llmshearing.models.cuttable import Cutter
from llmshearing.models.families import family_of
from llmshearing.models.shapes import shape_of, with_shape
from llmshearing.models.stored_names import read_parameter, stored_tensors
from llmshearing.models.targets import target_shape
from tests.export.cut_folder import AXES, uniform_soft_masks
from tests.export.test_model_folder import IDS
from tests.models.tiny import MIXTURES, tiny_model

BY_HAND = [name for name in MIXTURES if name != 'gpt_oss']  # which has a gating of its own
ALL_BUT_ONE_KEPT = torch.tensor([[1.0, 0.5, 0.0, 0.3, 1.0, 0.0], [0.0, 0.2, 0.9, 0.0, 0.7, 1.0]] * 2)


def computes_by_hand(model, z):
    """Has every mixture of a model computed in full: closed routers, every expert for every token, outputs times z."""
    family, per_token = family_of(model.config), model.config.num_experts_per_tok
    for number, layer in enumerate(model.get_submodule(f'{family.decoder}.layers').children()):
        block = layer.get_submodule(family.mlp)
        gate_up, down = expert_matrices(block, family)
        normalises = getattr(model.config, 'norm_topk_prob', True)

        def forward(x, block=block, gate_up=gate_up, down=down, mask=z[number], normalises=normalises):
            router = block.router if hasattr(block, 'router') else block.gate
            logits = (x @ router.weight.T).masked_fill(mask == 0, float('-inf'))
            shares, chosen = logits.softmax(-1).topk(min(per_token, int((mask != 0).sum())), dim=-1)
            shares = shares / shares.sum(-1, keepdim=True) if normalises else shares
            gates = torch.zeros_like(logits).scatter(-1, chosen, shares) * mask
            gate, up = torch.einsum('bth,eih->beti', x, gate_up).chunk(2, -1)
            out = torch.einsum('beti,ehi->beth', torch.nn.functional.silu(gate) * up, down)
            out = torch.einsum('bte,beth->bth', gates, out)
            if hasattr(block, 'shared_expert'):
                out = out + torch.sigmoid(block.shared_expert_gate(x)) * block.shared_expert(x)
            return (out, logits) if isinstance(getattr(block, 'experts', None), torch.nn.ModuleList) else out

        block.forward = forward
    return model


@pytest.mark.parametrize('variant', BY_HAND)
def test_a_masked_expert_is_out_of_the_softmax_and_the_others_are_multiplied(variant):
    z = ALL_BUT_ONE_KEPT.clone().requires_grad_()
    expected = computes_by_hand(tiny_model(variant), z)(IDS, use_cache=False).logits
    expected.square().sum().backward()
    model = tiny_model(variant)
    cutter = Cutter(model)
    cutter.set_masks({'expert': ALL_BUT_ONE_KEPT})
    logits = model(IDS, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    logits.square().sum().backward()
    kept = ALL_BUT_ONE_KEPT != 0
    got, want = cutter.mask_gradients()['expert'], z.grad
    torch.testing.assert_close(got[kept], want[kept], rtol=1e-3, atol=1e-4 * want.abs().max().item())
    assert (got[~kept] == 0).all()


@pytest.mark.parametrize('variant', MIXTURES)
def test_a_layer_may_have_fewer_experts_than_a_token_is_sent_to_or_none(variant):
    model = tiny_model(variant)
    cutter, mask = Cutter(model), torch.ones(4, 6)
    mask[1, 1:], mask[2] = 0, 0
    cutter.set_masks({'expert': mask})
    logits = model(IDS, use_cache=False).logits
    assert torch.isfinite(logits).all()
    if variant in BY_HAND:
        mask[2, 0] = 1  # what is computed there comes to nothing
        by_hand = computes_by_hand(tiny_model(variant), mask)
        last = by_hand.model.layers[2].get_submodule(cutter.family.mlp)
        with_experts = last.forward

        def without(x):
            out = with_experts(x)
            nothing = torch.zeros_like(x)
            if hasattr(last, 'shared_expert'):
                nothing = torch.sigmoid(last.shared_expert_gate(x)) * last.shared_expert(x)
            return (nothing, out[1]) if isinstance(out, tuple) else nothing

        last.forward = without
        torch.testing.assert_close(logits, by_hand(IDS, use_cache=False).logits, atol=1e-5, rtol=0)
    logits.sum().backward()


@pytest.mark.parametrize('variant', MIXTURES)
def test_any_number_of_hidden_and_intermediate_dimensions_may_be_kept(variant, monkeypatch):
    """Kernels take multiples of 8; what is added for them comes to nothing, in the output and in the gradients."""
    results = []
    for multiple in (experts.ALIGNED_EXPERTS, 1):
        monkeypatch.setattr(experts, 'ALIGNED_EXPERTS', multiple)
        monkeypatch.setattr(cuttable, 'ALIGNED_EXPERTS', multiple)
        model = tiny_model(variant)
        if multiple == 1:
            model.config._experts_implementation = 'eager'
        generator = torch.Generator().manual_seed(3)
        masks = {'hidden': torch.ones(48), 'intermediate': torch.rand(4, 6 * 64, generator=generator) + 0.1}
        masks['hidden'][torch.randperm(48, generator=generator)[:11]] = 0
        masks['intermediate'][masks['intermediate'] < 0.5] = 0  # another number in every expert
        cutter = Cutter(model)
        cutter.set_masks(masks)
        logits = model(IDS, use_cache=False).logits
        logits.square().sum().backward()
        weights = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        # Padding has a gradient where kernels want it, which the learners leave out as that of all that is gone.
        gradients = {axis: gradient[masks[axis] != 0] for axis, gradient in cutter.mask_gradients().items()}
        results.append({'logits': logits, **gradients, **weights})
    for name, want in results[1].items():
        got = results[0][name]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * want.abs().max().item() + 1e-7)


@pytest.mark.parametrize('variant', MIXTURES)
def test_the_loss_that_balances_experts_is_that_of_the_exported_model(variant, tmp_path):
    model = tiny_model(variant, output_router_logits=True, router_aux_loss_coef=0.5)
    cutter = Cutter(model)
    cutter.set_masks(uniform_soft_masks(model.config, AXES))
    with torch.no_grad():
        masked = model(IDS, labels=IDS, use_cache=False)
    export_model(cutter, tmp_path / 'out')
    exported = open_strictly(tmp_path / 'out')
    assert exported.config.output_router_logits and exported.config.router_aux_loss_coef == 0.5
    with torch.no_grad():
        got = exported(IDS, labels=IDS, use_cache=False)
    torch.testing.assert_close(got.loss, masked.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.aux_loss, masked.aux_loss, atol=1e-5, rtol=0)
    cutter.set_masks(None)
    assert model.num_experts == 6
    model(IDS, labels=IDS, use_cache=False)


@pytest.mark.parametrize('variant', MIXTURES)
def test_parameters_and_the_tensors_of_a_folder_are_one(variant, tmp_path):
    from safetensors.torch import load_file

    model = tiny_model(variant)
    model.save_pretrained(tmp_path)
    files = load_file(tmp_path / 'model.safetensors')
    made = dict(part for pair in model.state_dict().items() for part in stored_tensors(model.config, *pair))
    assert made.keys() == files.keys()
    assert all(torch.equal(made[name], files[name]) for name in files)
    for name, parameter in model.state_dict().items():
        assert torch.equal(read_parameter(model.config, name, files.__getitem__), parameter), name


MIXTRAL_8X7B = CONFIG_MAPPING['mixtral']()
QWEN3_30B = CONFIG_MAPPING['qwen3_moe'](
    vocab_size=151936,
    hidden_size=2048,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
)


@pytest.mark.parametrize(
    'config, total, active',
    [(MIXTRAL_8X7B, 46_702_792_704, 12_879_925_248), (QWEN3_30B, 30_532_122_624, 3_353_032_704)],
    ids=['Mixtral-8x7B', 'Qwen3-30B-A3B'],
)
def test_published_parameters_and_active_parameters(config, total, active):
    layout, shape = layout_of(config), shape_of(config)
    assert count_parameters(layout, shape).total == total
    assert active_parameters(layout, shape) == active
    fewer = target_shape(config, {'num_experts': shape.num_experts // 2})
    assert active_parameters(layout, fewer) == active - shape.num_hidden_layers * shape.hidden_size * (
        shape.num_experts // 2
    )
    half = target_shape(config, {'params': total // 2, 'tolerance': 0.05})
    assert half.num_experts == shape.num_experts and half.intermediate_size < shape.intermediate_size
    pinned = target_shape(config, {'params': total // 2, 'tolerance': 0.05, 'num_experts': shape.num_experts // 2})
    assert pinned.num_experts == shape.num_experts // 2 and pinned.intermediate_size > half.intermediate_size
    outside = active - config.vocab_size * shape.hidden_size  # the embedding is looked up
    norms = shape.num_hidden_layers * (2 * shape.hidden_size + (256 if config.model_type == 'qwen3_moe' else 0))
    attention = 12 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * 1024
    matrices = outside - norms - shape.hidden_size
    assert training_flops_per_token(layout, shape, 1024) == 6 * matrices + attention


def test_targets_of_mixtures():
    config = tiny_model('qwen3_moe').config
    source = shape_of(config)
    named = {'moe_intermediate_size': 32, 'num_experts': 3, 'hidden_size': 24}
    shape = target_shape(config, named)
    assert (shape.intermediate_size, shape.num_experts, shape.num_experts_per_tok) == (32, 3, 2)
    cut = with_shape(config, shape)
    assert (cut.moe_intermediate_size, cut.num_experts, cut.intermediate_size) == (32, 3, config.intermediate_size)
    assert shape_of(cut) == shape
    assert target_shape(tiny_model('mixtral').config, {'num_local_experts': 3}).num_experts == 3
    half = target_shape(config, {'fraction': {'num_experts': 0.5, 'moe_intermediate_size': 0.5}, 'multiple_of': 8})
    assert (half.num_experts, half.intermediate_size) == (3, 32)
    assert target_shape(config, {'fraction': {'num_experts': 0.01}}).num_experts == source.num_experts_per_tok
    with pytest.raises(ValueError, match=r'num_experts=1 is less than num_experts_per_tok=2, .*: keep 2 to 6\.'):
        target_shape(config, {'num_experts': 1})
    with pytest.raises(ValueError, match="num_experts=7 is larger than the source's 6"):
        target_shape(config, {'num_experts': 7})
    with pytest.raises(ValueError, match='num_experts_per_tok=1: .* inherited from the source; leave it out or set 2'):
        target_shape(config, {'num_experts_per_tok': 1})
    with pytest.raises(ValueError, match='moe_intermediate_size and intermediate_size are the same number'):
        target_shape(config, {'moe_intermediate_size': 32, 'intermediate_size': 32})
    with pytest.raises(ValueError, match='hidden_size=36: .* multiples of 8 alone; nearest: hidden_size=32 or 40'):
        target_shape(config, {'hidden_size': 36})
    with pytest.raises(ValueError, match="unknown key 'num_experts'"):
        target_shape(tiny_model('llama').config, {'num_experts': 2, 'params': 1e4})
    with pytest.raises(ValueError, match=r"target: unknown key 'num_experts'\..*Possible: .*head_dim\.$"):
        target_shape(tiny_model('llama').config, {'num_experts': 2})


def test_mixtures_that_no_table_describes_are_refused():
    config = tiny_model('qwen3_moe').config
    config.mlp_only_layers = [1]
    with pytest.raises(ValueError, match=r'layers without experts \(mlp_only_layers=\[1\]'):
        family_of(config)
    config = tiny_model('mixtral').config
    config.num_experts_per_tok = 7
    with pytest.raises(ValueError, match='num_experts_per_tok=7 of 6 experts; between 1 and 6'):
        family_of(config)


def test_too_few_experts_do_not_leave(tmp_path):
    model = tiny_model('mixtral')
    cutter, mask = Cutter(model), torch.zeros(4, 6)
    mask[:, 0] = 1
    cutter.set_masks({'expert': mask})
    with pytest.raises(ValueError, match='the masks leave 1 experts in every layer, fewer than the 2'):
        export_model(cutter, tmp_path / 'out')
    mask[1] = 1
    cutter.set_masks({'expert': mask})
    with pytest.raises(ValueError, match='layer 0: .* 1 experts, layer 1: .* 6 experts'):
        export_model(cutter, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_a_dense_model_has_no_such_axis():
    cutter = Cutter(tiny_model('llama'))
    with pytest.raises(ValueError, match=r"unknown mask axis 'expert'; possible: hidden, .*, intermediate\."):
        cutter.set_masks({'expert': torch.ones(4, 6)})
