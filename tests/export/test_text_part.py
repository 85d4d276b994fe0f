"""The text part of a multimodal model computes, alone, what it computes inside the whole; what cannot be is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GraniteConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    SmolVLMConfig,
)

from llmshearing import cli
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.config.source import read_config_at, refuse_unusable
from llmshearing.export.model_folder import open_strictly
from llmshearing.models.families import family_of
from tests.tiny_run import tiny_source, tiny_tokenizer

SIZES = {'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 2}
VISION = {**SIZES, 'image_size': 16, 'patch_size': 8}
TEXT = {**SIZES, 'num_key_value_heads': 1, 'head_dim': 8, 'vocab_size': 64}
WHOLE = {
    'gemma3': lambda: Gemma3Config(
        text_config=Gemma3TextConfig(**TEXT, sliding_window=8).to_dict(), vision_config=VISION, mm_tokens_per_image=4
    ),
    'llava': lambda: LlavaConfig(text_config=MistralConfig(**TEXT), vision_config=VISION, image_token_index=60),
    'idefics3': lambda: Idefics3Config(
        text_config=LlamaConfig(**TEXT), vision_config=VISION, image_token_id=60, scale_factor=2, pad_token_id=0
    ),
    'smolvlm': lambda: SmolVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=VISION, image_token_id=60, scale_factor=2, pad_token_id=0
    ),
}
if TRANSFORMERS_5:
    from transformers import (
        Cohere2Config,
        Cohere2VisionConfig,
        Lfm2Config,
        Lfm2VlConfig,
        Ministral3Config,
        Mistral3Config,
        Qwen3_5Config,
        Qwen3_5MoeConfig,
    )

    DELTA_NETS = {
        **TEXT,
        'layer_types': ['linear_attention', 'full_attention'],
        'linear_key_head_dim': 8,
        'linear_value_head_dim': 8,
        'linear_num_key_heads': 2,
        'linear_num_value_heads': 2,
    }
    SEEING = {**VISION, 'depth': 1, 'num_heads': 2, 'out_hidden_size': 16, 'num_position_embeddings': 16}
    TOKENS = {'image_token_id': 60, 'video_token_id': 61, 'vision_start_token_id': 62, 'vision_end_token_id': 63}
    WHOLE['mistral3'] = lambda: Mistral3Config(
        text_config=Ministral3Config(**TEXT).to_dict(),
        vision_config={'model_type': 'pixtral', **VISION},
        image_token_index=60,
    )
    WHOLE['qwen3_5'] = lambda: Qwen3_5Config(text_config=DELTA_NETS, vision_config=SEEING, **TOKENS)
    EXPERTS = {'num_experts': 3, 'num_experts_per_tok': 2, 'moe_intermediate_size': 24}
    WHOLE['qwen3_5_moe'] = lambda: Qwen3_5MoeConfig(
        text_config={**DELTA_NETS, **EXPERTS, 'shared_expert_intermediate_size': 8}, vision_config=SEEING, **TOKENS
    )
    CONVOLUTIONS = {'layer_types': ['conv', 'full_attention'], 'block_auto_adjust_ff_dim': False}
    WHOLE['lfm2_vl'] = lambda: Lfm2VlConfig(
        text_config=Lfm2Config(**TEXT, **CONVOLUTIONS).to_dict(),
        vision_config={'model_type': 'siglip2_vision_model', **VISION},
        image_token_id=60,
    )
    WHOLE['cohere2_vision'] = lambda: Cohere2VisionConfig(
        text_config=Cohere2Config(**TEXT, sliding_window=8).to_dict(), vision_config=VISION, image_token_id=60
    )
UNSCALED = {'cohere2_vision': 16}  # the whole's logits by the decoder's, as transformers leaves out logit_scale there
IDS = torch.arange(3, 43).reshape(2, 20)


def make_whole(folder, kind):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(WHOLE[kind]()).eval()
    model.save_pretrained(folder)
    tiny_tokenizer(64).save_pretrained(folder)
    (folder / 'LICENSE').write_text('as it were')
    return model


@pytest.mark.parametrize('kind', WHOLE)
def test_it_computes_what_it_computed_in_the_whole(kind, tmp_path, capsys):
    whole = make_whole(tmp_path / 'whole', kind)
    with pytest.raises(ValueError, match='`llmshearing text-part SOURCE --output FOLDER`'):
        refuse_unusable('source', read_config_at('source', str(tmp_path / 'whole')))
    assert cli.main(['text-part', str(tmp_path / 'whole'), '--output', str(tmp_path / 'text')]) == 0
    assert ('it computes what the whole computes\n' in capsys.readouterr().out) == (kind not in UNSCALED)
    taken = read_config_at('source', str(tmp_path / 'text'))
    refuse_unusable('source', taken)
    assert family_of(taken) is not None
    with torch.no_grad():
        expected, got = whole(input_ids=IDS).logits, open_strictly(tmp_path / 'text')(IDS).logits
    torch.testing.assert_close(got * UNSCALED.get(kind, 1), expected, atol=1e-5, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['text', 'whole']
    assert (tmp_path / 'text' / 'LICENSE').read_text() == 'as it were'
    assert 'text part of whole' in (tmp_path / 'text' / 'README.md').read_text()


@pytest.mark.parametrize(
    'text, left_out',
    [
        (lambda: GraniteConfig(**TEXT, logits_scaling=4.0, embedding_multiplier=3.0), 'logits_scaling=4.0'),
        (lambda: Gemma2Config(**TEXT, final_logit_softcapping=0.1), 'final_logit_softcapping=0.1'),
    ],
)
def test_what_the_whole_leaves_out_after_its_head_is_told(text, left_out, tmp_path, capsys, monkeypatch):
    scaled = LlavaConfig(text_config=text(), vision_config=VISION, image_token_index=60)
    scaled.text_config._attn_implementation = 'eager'
    monkeypatch.setitem(WHOLE, 'scaled', lambda: scaled)
    make_whole(tmp_path / 'whole', 'scaled')
    assert cli.main(['text-part', str(tmp_path / 'whole'), '--output', str(tmp_path / 'text')]) == 0
    assert (f'what the whole computes, but for {left_out}' in capsys.readouterr().out) == TRANSFORMERS_5
    put = ['--put-back', str(tmp_path / 'text'), '--output', str(tmp_path / 'again')]
    assert cli.main(['text-part', str(tmp_path / 'whole'), *put]) == 0
    assert (f', but for {left_out}' in capsys.readouterr().out) == TRANSFORMERS_5


def test_a_whole_that_computes_something_else_is_refused(tmp_path, capsys, monkeypatch):
    make_whole(tmp_path / 'whole', 'llava')
    forward = LlavaForConditionalGeneration.forward

    def other(self, **inputs):
        output = forward(self, **inputs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(LlavaForConditionalGeneration, 'forward', other)
    said = refusal(capsys, tmp_path / 'whole', '--output', tmp_path / 'text')
    assert 'LlavaForConditionalGeneration: its logits on text differ from those of the decoder by' in said
    assert not (tmp_path / 'text').exists()


@pytest.mark.skipif(not TRANSFORMERS_5, reason='earlier versions know no attention to both sides')
def test_a_text_part_that_looks_ahead_is_refused(tmp_path, capsys, monkeypatch):
    """PaliGemma's does, also where its config does not say so; the advice works."""
    seeing = {'model_type': 'siglip_vision_model', **VISION, 'projection_dim': 16}
    text = {'model_type': 'gemma', **TEXT}
    whole = PaliGemmaConfig(text_config=text, vision_config=seeing, image_token_index=60, projection_dim=16)
    monkeypatch.setitem(WHOLE, 'paligemma', lambda: whole)
    make_whole(tmp_path / 'whole', 'paligemma')
    config = json.loads((tmp_path / 'whole' / 'config.json').read_text())
    command = ['text-part', str(tmp_path / 'whole'), '--output', str(tmp_path / 'text')]
    del config['text_config']['use_bidirectional_attention']
    (tmp_path / 'whole' / 'config.json').write_text(json.dumps(config))
    assert cli.main(command) == 1
    assert 'of its text part, the config has use_bidirectional_attention: True' in capsys.readouterr().err
    config['text_config']['use_bidirectional_attention'] = False
    (tmp_path / 'whole' / 'config.json').write_text(json.dumps(config))
    assert cli.main(command) == 0


@pytest.mark.skipif(not TRANSFORMERS_5, reason='transformers 4 ties the head of a whole where its text config says so')
def test_a_head_of_its_own_stays_where_the_text_config_says_tied(tmp_path, monkeypatch):
    monkeypatch.setitem(WHOLE, 'untied', lambda: untied)
    untied = WHOLE['gemma3']()
    untied.tie_word_embeddings, untied.text_config.tie_word_embeddings = False, True
    whole = make_whole(tmp_path / 'whole', 'untied')
    assert cli.main(['text-part', str(tmp_path / 'whole'), '--output', str(tmp_path / 'text')]) == 0
    text = open_strictly(tmp_path / 'text')
    assert not text.config.tie_word_embeddings
    with torch.no_grad():
        torch.testing.assert_close(text(IDS).logits, whole(input_ids=IDS).logits, atol=1e-5, rtol=0)


def test_a_head_that_is_the_embedding_is_written_once(tmp_path):
    make_whole(tmp_path / 'whole', 'gemma3')
    path = tmp_path / 'whole' / 'model.safetensors'
    tensors = load_file(path)
    embedding = next(name for name in tensors if name.endswith('embed_tokens.weight'))
    tensors[embedding.replace('model.embed_tokens', 'lm_head')] = tensors[embedding].clone()
    save_file(tensors, path, {'format': 'pt'})
    assert cli.main(['text-part', str(tmp_path / 'whole'), '--output', str(tmp_path / 'text')]) == 0
    assert open_strictly(tmp_path / 'text').config.tie_word_embeddings
    assert not any('lm_head' in name for name in load_file(tmp_path / 'text' / 'model.safetensors'))


def refusal(capsys, *arguments):
    assert cli.main(['text-part', *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_what_is_not_possible_is_one_sentence(tmp_path, capsys):
    make_whole(tmp_path / 'whole', 'llava')
    tiny_source(tmp_path / 'plain')
    out = ['--output', tmp_path / 'text']
    assert 'is no Hugging Face model folder' in refusal(capsys, tmp_path / 'nowhere', *out)
    assert 'is a llama, which has no text part beside others' in refusal(capsys, tmp_path / 'plain', *out)
    assert 'exists already' in refusal(capsys, tmp_path / 'whole', '--output', tmp_path / 'plain')
    again = ['--output', tmp_path / 'whole', '--overwrite']
    assert 'is needed' in refusal(capsys, tmp_path / 'whole', *again)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'less')
    path = tmp_path / 'less' / 'model.safetensors'
    tensors = load_file(path)
    del tensors[next(name for name in tensors if name.endswith('layers.1.mlp.up_proj.weight'))]
    save_file(tensors, path, {'format': 'pt'})
    assert 'missing: model.layers.1.mlp.up_proj.weight' in refusal(capsys, tmp_path / 'less', *out)
    config = json.loads((tmp_path / 'whole' / 'config.json').read_text())
    config['quantization_config'] = {'quant_method': 'awq', 'bits': 4}
    (tmp_path / 'less' / 'config.json').write_text(json.dumps(config))
    assert 'quantised' in refusal(capsys, tmp_path / 'less', *out)
    assert not (tmp_path / 'text').exists()
