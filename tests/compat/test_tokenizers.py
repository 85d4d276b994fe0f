"""What a tokenizer.json says decides the ids, whatever class the config names."""

from __future__ import annotations

import json

import pytest
from llmfoundry.utils.builders import build_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from llmshearing.checkpoints.tokenizer_files import write_tokenizer
from llmshearing.compat import llmfoundry
from llmshearing.compat.tokenizers import SAMPLE, TokenizerLoader, is_general
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.data.fingerprint import check_tokenizer, describe_tokenizer
from llmshearing.export.companions import copy_companions

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
THREE_DIGITS = (
    r"(?i:'s|'t|'re|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEFORE = {
    'digits': [pre_tokenizers.Digits(individual_digits=True), BYTES],
    'three digits': [
        pre_tokenizers.Split(Regex(THREE_DIGITS), 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


@pytest.fixture(params=[('digits', 'GPT2Tokenizer'), ('three digits', 'Qwen2Tokenizer')], ids='-'.join)
def folder(request, tmp_path):
    """A tokenizer whose file takes digits apart in its own way, under the name of a class that does not."""
    before, name = request.param
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(BEFORE[before]), decoders.ByteLevel()
    text = [f'    x = {i}\n        y[ {7 * i} ] =   {13 * i}\n' for i in range(500)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ['<|endoftext|>']
    backend.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    folder = tmp_path / 'source'
    folder.mkdir()
    backend.save(str(folder / 'tokenizer.json'))
    settings = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), special[0])
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': name, **settings}))
    (folder / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
    return folder


def ids_in_file(folder):
    return Tokenizer.from_file(str(folder / 'tokenizer.json')).encode(SAMPLE, add_special_tokens=False).ids


def ids(tokenizer):
    return tokenizer.encode(SAMPLE, add_special_tokens=False)


def test_the_file_decides(folder):
    expected = ids_in_file(folder)
    assert ids(read_tokenizer(folder)) == ids(TokenizerLoader.from_pretrained(folder)) == expected
    llmfoundry.install()
    assert ids(build_tokenizer(str(folder), {})) == expected  # what a run has
    assert TRANSFORMERS_5 == (ids(AutoTokenizer.from_pretrained(folder)) != expected)  # as long as it is needed


@pytest.mark.parametrize('way', ['written', 'copied'])
def test_what_is_written_is_opened_alike_by_anyone(folder, tmp_path, way):
    written = tmp_path / way
    written.mkdir()
    if way == 'written':
        write_tokenizer(read_tokenizer(folder), written, {})
    else:
        copy_companions(folder, written)
        assert (written / 'tokenizer.json').read_bytes() == (folder / 'tokenizer.json').read_bytes()
    (written / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
    assert ids_in_file(written) == ids(AutoTokenizer.from_pretrained(written)) == ids_in_file(folder)


@pytest.mark.skipif(not TRANSFORMERS_5, reason='transformers 4 opens every file as it is')
def test_data_that_were_made_without_it_are_refused(folder, tmp_path):
    (tmp_path / 'data').mkdir()
    wrong = AutoTokenizer.from_pretrained(folder)
    assert not is_general(wrong)
    described = {'name': 'x', 'class': 'X', **describe_tokenizer(wrong)}
    (tmp_path / 'data' / 'manifest.json').write_text(json.dumps({'tokenizer': described}))
    with pytest.raises(ValueError, match='made with another tokenizer'):
        check_tokenizer(read_tokenizer(folder), [(str(tmp_path / 'data'), None)])
