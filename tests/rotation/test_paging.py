"""A paged model computes bit for bit what the whole model does, and holds none of its projections."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmshearing.compat.transformers import attention_implementation
from llmshearing.rotation.moments import stream_moments
from llmshearing.rotation.paging import paged_model
from llmshearing.rotation.source_folder import SourceFolder
from tests.models.tiny import tiny_model
from tests.rotation.models import IDS, ROTATABLE, source_model


@pytest.mark.parametrize('variant', ROTATABLE)
def test_paged_is_the_whole_model(variant, tmp_path):
    source_model(variant, torch.float32).save_pretrained(tmp_path)
    attention = attention_implementation(tiny_model(variant).config)
    for dtype in (torch.float32, torch.bfloat16):
        whole = AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=dtype, attn_implementation=attention).eval()
        paged = paged_model(SourceFolder(tmp_path), dtype)
        with torch.no_grad():
            assert torch.equal(paged(IDS).logits, whole(IDS).logits)
        assert {p.device.type for p in paged.parameters() if p.dim() == 2} == {'meta'}
    moments = stream_moments(paged, [IDS])
    torch.testing.assert_close(moments.covariance, stream_moments(whole, [IDS]).covariance, rtol=0, atol=0)


def test_paged_in_shards_and_after_an_error(tmp_path):
    source_model('llama', torch.float32).save_pretrained(tmp_path, max_shard_size='40KB')
    assert (tmp_path / 'model.safetensors.index.json').exists()
    paged = paged_model(SourceFolder(tmp_path), torch.float32)
    with pytest.raises(IndexError):
        paged(IDS + 1000)
    assert paged.model.embed_tokens.weight.device.type == 'meta'
    whole = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(paged(IDS).logits, whole(IDS).logits)
