"""An exported folder as a GGUF file under llama.cpp's naming rules, written with the ``gguf`` package and opened again.

The names come from ``gguf``'s own table of llama.cpp's tensors; llama.cpp's order of rotary pairs (two halves become
neighbours) is written out here. What opens it is transformers' GGUF reader, not llama.cpp itself.
"""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmshearing.export.model_folder import open_strictly
from tests.export.checkpoints import TARGET, pruning_checkpoint


def neighbouring_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (first halves, second halves) of the rotary pairs to pairs side by side."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder, path):
    """Writes a LLaMA folder as float32 GGUF; returns the names of its tensors."""
    config = json.loads((folder / 'config.json').read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config['num_hidden_layers'])
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_name('tiny')
    writer.add_vocab_size(config['vocab_size'])
    writer.add_context_length(config['max_position_embeddings'])
    writer.add_embedding_length(config['hidden_size'])
    writer.add_block_count(config['num_hidden_layers'])
    writer.add_feed_forward_length(config['intermediate_size'])
    writer.add_head_count(config['num_attention_heads'])
    writer.add_head_count_kv(config['num_key_value_heads'])
    writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
    writer.add_rope_freq_base(config['rope_theta'])
    writer.add_rope_dimension_count(config['head_dim'])
    writer.add_key_length(config['head_dim'])  # llama.cpp assumes hidden size / heads where these two are not given
    writer.add_value_length(config['head_dim'])
    heads = {'q_proj': config['num_attention_heads'], 'k_proj': config['num_key_value_heads']}
    written = []
    for name, tensor in load_file(folder / 'model.safetensors').items():
        value, projection = tensor.float().numpy(), name.split('.')[-2]
        if projection in heads:
            value = neighbouring_pairs(value, heads[projection])
        written.append(names.get_name(name, try_suffixes=('.weight', '.bias')))
        assert written[-1] is not None, f'llama.cpp has no name for {name}'
        writer.add_tensor(written[-1], np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.mark.parametrize('variant', ['llama', 'llama-tied'])
def test_the_exported_folder_is_the_same_model_as_gguf(tmp_path, variant):
    _, pruned, _, _ = pruning_checkpoint(tmp_path, variant=variant)
    (tmp_path / 'gguf').mkdir()
    written = write_gguf(pruned, tmp_path / 'gguf' / 'tiny.gguf')
    assert {'token_embd.weight', 'output_norm.weight', 'blk.0.attn_q.weight', 'blk.2.ffn_down.weight'} <= set(written)
    assert ('output.weight' in written) == (variant == 'llama') and len(written) == 9 * TARGET[
        'num_hidden_layers'
    ] + 2 + (variant == 'llama')
    assert sorted(written) == sorted(tensor.name for tensor in gguf.GGUFReader(tmp_path / 'gguf' / 'tiny.gguf').tensors)
    opened = AutoModelForCausalLM.from_pretrained(
        tmp_path / 'gguf', gguf_file='tiny.gguf', torch_dtype=torch.float32
    ).eval()
    stock = open_strictly(pruned)
    assert (opened.config.head_dim, opened.config.hidden_size) == (stock.config.head_dim, 36)
    assert opened.config.head_dim * opened.config.num_attention_heads != 36  # the case that readers get wrong
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, stock(ids).logits, rtol=1e-5, atol=1e-5)
