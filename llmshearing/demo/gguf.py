"""Model and tokenizer out of a GGUF file.

Weights and configuration go through transformers' own GGUF reader, which knows the layout (dequantization, order of the
rotary dimensions). The tokenizer does not: the one transformers builds from SmolLM2's file has the wrong end of text
and loses text, so it is assembled here from the file's vocabulary and merges.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from llmshearing.compat.transformers import dtype_argument

__all__ = ['build_tokenizer', 'read_gguf']

CONTROL_TOKEN = 3  # the GGUF token type of special tokens


def build_tokenizer(
    tokens: list[str],
    token_types: list[int],
    merges: list[str],
    special: dict[str, int],
    chat_template: str | None,
    max_length: int,
) -> PreTrainedTokenizerFast:
    """Assembles a byte-level BPE tokenizer that splits digits one by one (GGUF's pre-tokenizer ``smollm``).

    No token is added to a text, and decoding gives the text back. The exception lies in SmolLM2's vocabulary: it has no
    token for six control characters (bytes 4, 6, 0x13, 0x14, 0x16, 0x1d) nor for the bytes that begin the rarest planes
    of Unicode (0xf1, 0xf2); those become the unknown token.

    Args:
        tokens (list[str]): The vocabulary in the order of its ids.
        token_types (list[int]): GGUF's type of each token; type 3 is a control token, never produced by merges.
        merges (list[str]): Pairs of tokens separated by one space, most frequent first.
        special (dict[str, int]): Ids under the keys ``bos``, ``eos``, ``pad`` and ``unk``.
        chat_template (str | None): Jinja template of the conversation format.
        max_length (int): The longest input the model was made for, in tokens.
    """
    pairs = [(first, second) for first, second in (merge.split(' ') for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token=tokens[special['unk']], byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, token_types) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    names = {f'{role}_token': tokens[i] for role, i in special.items()}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[token for token in control if token not in names.values()],
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        **names,
    )
    fast.chat_template = chat_template
    return fast


def read_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Reads the model (float32, tied embeddings) and the tokenizer out of a GGUF file.

    Raises:
        ValueError: The tensors in the file are not exactly those of a LLaMA model of its shape.
    """
    settings = load_gguf_checkpoint(path)['config']
    keys = (
        'hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size '
        'max_position_embeddings rope_theta tie_word_embeddings bos_token_id eos_token_id pad_token_id'
    ).split()
    # The epsilon was stored as float32; seven digits give back the number that was meant.
    config = LlamaConfig(
        **{key: settings[key] for key in keys},
        rms_norm_eps=float(f'{settings["rms_norm_eps"]:.7g}'),
        **dtype_argument('float32'),
        architectures=['LlamaForCausalLM'],
    )
    with torch.device('meta'):
        model = LlamaForCausalLM(config)
    parsed = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    tensors = parsed['tensors']
    if config.tie_word_embeddings:
        tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f'{path} does not hold the tensors of its configuration; these differ: {differing[:5]}')
    # A model made on the meta device has no rotary frequencies, which are no parameters: start from a real one.
    model = LlamaForCausalLM(config)
    model.load_state_dict(tensors, strict=True)
    model.generation_config = GenerationConfig.from_model_config(config)

    vocabulary = parsed['tokenizer']
    tokenizer = build_tokenizer(
        vocabulary['tokens'],
        vocabulary['token_type'],
        vocabulary['merges'],
        special={role: vocabulary[f'{role}_token_id'] for role in ('bos', 'eos', 'pad', 'unk')},
        chat_template=parsed['tokenizer_config'].get('chat_template'),
        max_length=config.max_position_embeddings,
    )
    return model, tokenizer
