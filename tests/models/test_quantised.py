"""Quantised releases become sources by the lines of the README: their numbers, scaled, and nothing else is changed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmshearing import models
from llmshearing.checkpoints.source import check_weights
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.config.source import read_config_at, refuse_unusable
from tests.models.tiny import COMMON, VARIANTS
from tests.tiny_run import tiny_tokenizer

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4(name, weight):
    """Random codes, two in a byte, and an exponent for 32 of them; the tensors in the file and what they stand for."""
    experts, rows, columns = weight.transpose(1, 2).shape
    codes = torch.randint(0, 16, (experts, rows, columns // 32, 32))
    exponents = torch.randint(118, 124, (experts, rows, columns // 32))
    plain = (E2M1[codes] * 2.0 ** (exponents[..., None] - 127)).reshape(experts, rows, columns)
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
    stored = {f'{name}_blocks': blocks.to(torch.uint8), f'{name}_scales': exponents.to(torch.uint8)}
    return stored, plain.transpose(1, 2)


def fp8(name, weight):
    """One scale for a tensor, and one for its inputs, as in Ministral 3."""
    scale = weight.float().abs().max() / 448
    stored = (weight.float() / scale).to(torch.float8_e4m3fn)
    more = {f'{name}_scale_inv': scale, name.replace('weight', 'activation_scale'): torch.tensor(0.5)}
    return {name: stored, **more}, stored.float() * scale


def fp8_of_blocks(name, weight):
    """A scale for 16 rows and columns, as in Qwen 3."""
    scale = 0.01 + 0.01 * torch.rand(weight.shape[0] // 16, weight.shape[1] // 16)
    stored = (weight.float() / 0.01).to(torch.float8_e4m3fn)
    plain = stored.float() * scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return {name: stored, f'{name}_scale_inv': scale}, plain


CASES = {
    'gpt_oss': (mxfp4, ('gate_up_proj', 'down_proj'), {'quant_method': 'mxfp4', 'modules_to_not_convert': ['lm_head']}),
    'ministral3': (
        fp8,
        ('proj.weight',),
        {'quant_method': 'fp8', 'activation_scheme': 'static', 'weight_block_size': None, 'dequantize': False},
    ),
    'qwen3': (
        fp8_of_blocks,
        ('proj.weight',),
        {'quant_method': 'fp8', 'activation_scheme': 'dynamic', 'weight_block_size': [16, 16]},
    ),
}


@pytest.mark.skipif(not TRANSFORMERS_5, reason='transformers 4 has neither gpt-oss nor Ministral 3, and keeps FP8')
@pytest.mark.parametrize('kind', CASES)
def test_the_lines_of_the_readme(kind, tmp_path, monkeypatch):
    quantise, names, settings = CASES[kind]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**COMMON, 'hidden_size': 64, **VARIANTS[kind]})
    source, plain = tmp_path / 'models' / 'quantised', tmp_path / 'models' / 'plain'
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    stored, meant = {}, load_file(source / 'model.safetensors')
    for name, weight in meant.items():
        more, exact = quantise(name, weight) if name.endswith(names) else ({name: weight}, weight)
        stored |= more
        meant[name] = exact.to(torch.bfloat16)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, source / 'model.safetensors')
    content = json.loads((source / 'config.json').read_text())
    (source / 'config.json').write_text(json.dumps({**content, 'quantization_config': settings}))
    with pytest.raises(ValueError, match="'dequantize': True in the quantization_config of its config"):
        refuse_unusable('source', read_config_at('source', str(source)))
    monkeypatch.chdir(tmp_path)
    readme = Path(models.__file__).with_name('README.md').read_text()
    exec(readme.split('```python\n')[1].split('```')[0], {})
    taken = read_config_at('source', str(plain))
    refuse_unusable('source', taken)
    check_weights(plain, taken)
    got = load_file(plain / 'model.safetensors')
    assert got.keys() == meant.keys() and all(torch.equal(got[name], meant[name]) for name in got)
    assert (plain / 'tokenizer.json').is_file()
