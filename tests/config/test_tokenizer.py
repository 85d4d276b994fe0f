"""A tokenizer with ids that the source's embedding has no rows for is refused, with what works."""

import json
import re

import pytest
from transformers import AutoTokenizer

from llmshearing.config.run import check_run
from llmshearing.config.source import check_source
from llmshearing.config.tokenizer import check_rows
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from tests.config.demo_run import changed
from tests.tiny_run import tiny_source


def with_padding(folder) -> str:
    """A padding token that somebody put in for fine-tuning, as the tokenizers of many models on the hub have it."""
    source = tiny_source(folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({'pad_token': '[PAD]'})
    tokenizer.save_pretrained(source)
    return str(source)


def test_a_token_without_a_row_is_named_before_anything_is_built(config, tmp_path):
    source = with_padding(tmp_path / 'source')
    run = changed(changed(config, 'model.pretrained_model_name_or_path', source), 'tokenizer.name', source)
    message = (
        r'^tokenizer.name: \S*source has ids up to 97, and the embedding of the source 97 rows: '
        r"none for '\[PAD\]' \(97\)\. .*set model.allow_embedding_resizing: true"
    )
    with pytest.raises(ValueError, match=message):
        check_run(run)
    with pytest.raises(ValueError, match=message):  # the tokenizer alone is from elsewhere
        check_run(changed(run, 'model.pretrained_model_name_or_path', str(tiny_source(tmp_path / 'plain'))))


def test_what_the_message_advises_works(config, tmp_path):
    source = with_padding(tmp_path / 'source')
    run = changed(changed(config, 'model.pretrained_model_name_or_path', source), 'tokenizer.name', source)
    check_run(changed(run, 'model.allow_embedding_resizing', True))
    tokenizer = AutoTokenizer.from_pretrained(source)
    grown = ShearedCausalLM(tokenizer, source, allow_embedding_resizing=True)
    assert grown.config.vocab_size == grown.model.get_input_embeddings().weight.shape[0] == 98
    for name in ('tokenizer.json', 'tokenizer_config.json'):  # or without such tokens
        path = tmp_path / 'source' / name
        path.write_text(re.sub(r'\[PAD\]', '<pad>', path.read_text()))
    path = tmp_path / 'source' / 'tokenizer.json'
    content = json.loads(path.read_text())
    content['added_tokens'] = [token for token in content['added_tokens'] if token['id'] < 97]
    path.write_text(json.dumps(content))
    check_run(run)


def test_rows_beyond_the_tokenizer_are_no_trouble(config, tmp_path):
    model = {**config['model'], 'pretrained_model_name_or_path': str(tiny_source(tmp_path / 'wide', vocab_size=128))}
    source = check_source({**config, 'model': model})
    check_rows(AutoTokenizer.from_pretrained(tmp_path / 'wide'), 'wide', model, source.vocab_size)
