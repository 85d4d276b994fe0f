"""The proof refuses what is wrong: a merge too many, a token in another place, a weight that is another one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from llmshearing.vocabulary.choice import rank_tokens
from llmshearing.vocabulary.embeddings import rows_by_token
from llmshearing.vocabulary.proof import check_logits, check_tokenizer_folder, check_words
from llmshearing.vocabulary.rewriting import with_new_ids_in_tokenizer
from llmshearing.vocabulary.tokenizer_file import parse_tokenizer_file
from tests.models.tiny import tiny_model
from tests.vocabulary.sources import KINDS, make_source, pages, tokenizer_json


def trimmed(kind: str, size: int = 450) -> tuple[dict, list[int]]:
    content = json.loads(tokenizer_json(kind))
    counts = dict.fromkeys(Tokenizer.from_str(tokenizer_json(kind)).encode(pages()[1]).ids, 1)
    kept = rank_tokens(parse_tokenizer_file(content), counts, [], []).kept(size)
    return with_new_ids_in_tokenizer(content, kept), kept


@pytest.mark.parametrize('kind', KINDS)
def test_words_of_kept_tokens_are_counted(kind):
    content, kept = trimmed(kind)
    before, after = Tokenizer.from_str(tokenizer_json(kind)), Tokenizer.from_str(json.dumps(content))
    agreement = check_words(before, after, kept, [pages()[1]])
    assert 0 < agreement.kept < agreement.words
    assert check_words(before, before, range(before.get_vocab_size()), ['a b\n', '']).kept >= 1


@pytest.mark.parametrize('kind', ['byte-level', 'byte-fallback'])
def test_a_lost_merge_is_seen(kind):
    content, kept = trimmed(kind)
    before = Tokenizer.from_str(tokenizer_json(kind))
    del content['model']['merges'][0]
    after = Tokenizer.from_str(json.dumps(content))
    with pytest.raises(ValueError, match='makes other tokens of words in'):
        check_words(before, after, kept, [pages()[1]])


def test_a_token_in_another_place_is_seen(tmp_path):
    source, folder = make_source(tmp_path / 'source'), tmp_path / 'trimmed'
    content, kept = trimmed('byte-level')
    shutil.copytree(source, folder)
    (folder / 'tokenizer.json').write_text(json.dumps(content))
    assert check_tokenizer_folder(source, folder, kept, []).kept > 0
    vocab = content['model']['vocab']
    vocab['a'], vocab['b'] = vocab['b'], vocab['a']
    (folder / 'tokenizer.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match="gives 'a' the number .* and differs in 2 tokens"):
        check_tokenizer_folder(source, folder, kept, [])


@pytest.mark.parametrize('name', ['model.embed_tokens.weight', 'lm_head.weight', 'model.norm.weight'])
def test_another_weight_is_seen(tmp_path, name):
    tiny_model('llama').save_pretrained(tmp_path / 'source')
    shutil.copytree(tmp_path / 'source', tmp_path / 'other')
    rows = rows_by_token(tiny_model('llama').config)
    kept, where = list(range(97)), (tmp_path / 'source', tmp_path / 'other')
    assert rows == {'model.embed_tokens.weight': 97, 'lm_head.weight': 97}
    assert check_logits(*where, kept, torch.float32, True)['equal']
    tensors = load_file(where[1] / 'model.safetensors')
    tensors[name] *= 1.001
    save_file(tensors, where[1] / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(ValueError, match='logits differ by'):
        check_logits(*where, kept, torch.float32, True)
