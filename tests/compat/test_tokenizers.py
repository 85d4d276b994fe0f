"""What a tokenizer.json says decides the ids, whatever class the config names."""

from __future__ import annotations

import json
import logging
import resource

import pytest
from llmfoundry.utils.builders import build_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmshearing.checkpoints.tokenizer_files import write_tokenizer
from llmshearing.compat import llmfoundry
from llmshearing.compat.tokenizers import GENERAL_CLASS, SAMPLE, TokenizerLoader, is_general
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.data.fingerprint import check_tokenizer, describe_tokenizer
from llmshearing.export.companions import copy_companions
from tests.tiny_run import tiny_tokenizer

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


@pytest.fixture
def older_llama(tmp_path):
    """A tokenizer as the first LLaMAs have it: a blank before every piece between special tokens."""
    words = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256)), '\u2581', *map(chr, range(33, 127))]
    ids = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(ids, [], unk_token='<unk>', byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in words[:3]])
    backend.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    folder = tmp_path / 'older llama'
    folder.mkdir()
    backend.save(str(folder / 'tokenizer.json'))
    named = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
    settings = {'tokenizer_class': 'LlamaTokenizer', 'legacy': True, 'add_bos_token': True, **named}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
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


CHAT = '<s>x</s> y z</s>\nw'


def test_the_file_decides_after_special_tokens_too(older_llama):
    expected = Tokenizer.from_file(str(older_llama / 'tokenizer.json')).encode(CHAT).ids
    assert read_tokenizer(older_llama)(CHAT).input_ids == expected
    by_its_class = AutoTokenizer.from_pretrained(older_llama)
    assert ids(by_its_class) == ids_in_file(older_llama)  # text without any does not tell
    assert TRANSFORMERS_5 == (by_its_class(CHAT).input_ids != expected)  # as long as it is needed


@pytest.mark.parametrize('way', ['written', 'copied'])
def test_special_tokens_of_what_is_written_are_opened_alike_by_anyone(older_llama, tmp_path, way):
    opened, written = read_tokenizer(older_llama), tmp_path / way
    written.mkdir()
    if way == 'written':
        write_tokenizer(opened, written, {})
    else:
        copy_companions(older_llama, written)
    (written / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
    again = AutoTokenizer.from_pretrained(written)
    assert json.loads((written / 'tokenizer_config.json').read_text())['tokenizer_class'] == GENERAL_CLASS
    assert again(CHAT) == opened(CHAT) and again.padding_side == opened.padding_side


def test_what_a_class_puts_around_text_is_kept(older_llama, tmp_path):
    settings = json.loads((older_llama / 'tokenizer_config.json').read_text())
    (older_llama / 'tokenizer_config.json').write_text(json.dumps({**settings, 'add_eos_token': True}))
    opened = read_tokenizer(older_llama)
    copy_companions(older_llama, tmp_path)
    assert read_tokenizer(tmp_path)(CHAT).input_ids == opened(CHAT).input_ids


def test_data_that_were_made_with_other_ids_after_special_tokens_are_refused(older_llama, tmp_path):
    content = json.loads((older_llama / 'tokenizer.json').read_text())
    metaspace = {'type': 'Metaspace', 'replacement': '\u2581', 'prepend_scheme': 'first', 'split': False}
    tokenizer = read_tokenizer(older_llama)
    (older_llama / 'tokenizer.json').write_text(json.dumps({**content, 'normalizer': None, 'pre_tokenizer': metaspace}))
    (older_llama / 'tokenizer_config.json').unlink()
    described = describe_tokenizer(PreTrainedTokenizerFast.from_pretrained(older_llama))
    manifest = tmp_path / 'manifest.json'
    manifest.write_text(json.dumps({'tokenizer': described}))
    with pytest.raises(ValueError, match='made with another tokenizer'):
        check_tokenizer(tokenizer, [(str(tmp_path), None)])
    del described['around_special']  # as in a manifest of before
    manifest.write_text(json.dumps({'tokenizer': described}))
    check_tokenizer(tokenizer, [(str(tmp_path), None)])


def test_no_alarm_where_a_class_is_chosen_by_its_ids(older_llama, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('transformers'), 'propagate', True)
    settings = json.loads((older_llama / 'tokenizer_config.json').read_text())
    copy_companions(older_llama, tmp_path)
    for name in ('LlamaTokenizer', 'TokenizersBackend'):
        (older_llama / 'tokenizer_config.json').write_text(json.dumps({**settings, 'tokenizer_class': name}))
        read_tokenizer(older_llama)
    assert not caplog.records


def test_sentencepiece_alone_is_opened(tmp_path):
    """A canary of three versions: transformers reads the file by sentencepiece's messages, and they by protobuf."""
    sentencepiece = pytest.importorskip('sentencepiece')
    lines = [f'{number} words of a small model, {number * 7} of them' for number in range(200)]
    with (tmp_path / 'tokenizer.model').open('wb') as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=330, model_type='bpe', byte_fallback=True
        )
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'LlamaTokenizer', 'legacy': False}))
    opened = read_tokenizer(tmp_path)
    expected = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model')).encode(lines[3])
    assert opened(lines[3], add_special_tokens=False).input_ids == expected


@pytest.mark.skipif(not hasattr(resource, 'RLIMIT_FSIZE'), reason='no limits on file sizes')
def test_a_disk_that_fills_is_an_error_of_the_system(tmp_path):
    """The library itself raises a bare Exception."""
    tokenizer, before = tiny_tokenizer(), resource.getrlimit(resource.RLIMIT_FSIZE)
    tokenizer.save_pretrained(tmp_path / 'whole')
    sizes = {path.name: path.stat().st_size for path in (tmp_path / 'whole').iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes['tokenizer.json'] - 1, before[1]))
    try:
        with pytest.raises(OSError, match=f'the tokenizer cannot be written to {tmp_path} .File too large') as error:
            write_tokenizer(tokenizer, tmp_path, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value).count('\n') == 0
