"""What stands between documents, which type holds the ids, and ids equal to the Hugging Face tokenizer's."""

from __future__ import annotations

import json
import random
from functools import partial

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from llmshearing.data.packing import separators
from llmshearing.prepare import tokenizer
from llmshearing.prepare.tokenizer import Encoder, _encode_window, encode_in_windows, plan_tokenizer, smallest_dtype
from tests.prepare.prepare_inputs import make_documents, make_tokenizer


@pytest.mark.parametrize(
    ('size', 'dtype'), [(1, 'uint16'), (65535, 'uint16'), (65536, 'uint16'), (65537, 'uint32'), (1 << 32, 'uint32')]
)
def test_smallest_type(size, dtype):
    assert smallest_dtype(size) == dtype
    assert np.array([size - 1], dtype)[0] == size - 1


@pytest.mark.parametrize('size', [0, (1 << 32) + 1])
def test_no_type(size):
    with pytest.raises(ValueError, match='the vocabulary has'):
        smallest_dtype(size)


class _Tokenizer:
    def __init__(self, before, after, bos=1, eos=2):
        self.bos_token_id, self.eos_token_id, self._around = bos, eos, (before, after)

    def __call__(self, text, add_special_tokens):
        return {'input_ids': [*self._around[0], 9, *self._around[1]]}


@pytest.mark.parametrize(
    ('around', 'bos', 'eos', 'expected'),
    [
        (([1], []), None, None, (1, None)),  # as Llama
        (([], []), None, None, (None, 2)),  # as GPT-2: something has to stand between
        (([1], [2]), None, None, (1, 2)),
        (([], [2]), None, None, (None, 2)),
        (([1], []), False, None, (None, 2)),
        (([1], []), None, True, (1, 2)),
        (([], []), True, None, (1, None)),
        (([], []), False, False, (None, None)),
    ],
)
def test_separators(around, bos, eos, expected):
    assert separators(_Tokenizer(*around), bos, eos) == expected


def test_separator_that_does_not_exist():
    with pytest.raises(ValueError, match='eos is wanted between documents but the tokenizer has no eos token'):
        separators(_Tokenizer([], [], eos=None), None, None)


def test_same_ids_as_the_tokenizer(tmp_path):
    name = make_tokenizer(tmp_path)
    plan = plan_tokenizer(name, None, None)
    texts = make_documents(20, 3) + ['', ' ', '</s> inside']
    expected = AutoTokenizer.from_pretrained(name)(texts, add_special_tokens=False)['input_ids']
    assert plan.backend is not None and (plan.bos, plan.eos, plan.dtype) == (None, 1, 'uint16')
    assert [ids.tolist() for ids in Encoder(plan.backend, name).encode(texts)] == expected


def test_saved_truncation_and_padding_are_ignored(tmp_path):
    name = make_tokenizer(tmp_path / 'plain')
    tokenizer = Tokenizer.from_file(f'{name}/tokenizer.json')
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=30)
    cut = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>')
    cut.save_pretrained(tmp_path / 'cut')
    plain, cut = (plan_tokenizer(str(n), None, None) for n in (name, tmp_path / 'cut'))
    saved = json.loads(cut.backend)
    assert saved['truncation'] is None and saved['padding'] is None
    texts = make_documents(5, 1)
    for a, b in zip(Encoder(plain.backend, '').encode(texts), Encoder(cut.backend, '').encode(texts)):
        assert a.tolist() == b.tolist() and len(a) > 30


def test_slow_tokenizer(tmp_path):
    slow = ByT5Tokenizer()  # exists only in the slow form, and adds its end token by itself
    slow.save_pretrained(tmp_path)
    plan = plan_tokenizer(str(tmp_path), None, None)
    assert plan.backend is None and (plan.bos, plan.eos) == (None, slow.eos_token_id)
    texts = [*make_documents(5, 1), 'x' * (1 << 19)]
    ids = Encoder(None, str(tmp_path)).encode(texts)
    assert [i.tolist() for i in ids] == slow(texts, add_special_tokens=False)['input_ids']


def test_special_tokens_are_text_for_a_tokenizer_that_splits_them(tmp_path):
    name = make_tokenizer(tmp_path)
    parsed = plan_tokenizer(name, None, None)
    config = tmp_path / 'tokenizer_config.json'
    config.write_text(json.dumps({**json.loads(config.read_text()), 'split_special_tokens': True}))
    split = plan_tokenizer(name, None, None)
    texts = ['x</s> y', 'z']
    ids = [[one.tolist() for one in Encoder(plan.backend, plan.name).encode(texts)] for plan in (parsed, split)]
    assert parsed.eos in ids[0][0] and parsed.eos not in ids[1][0]
    assert ids[1] == AutoTokenizer.from_pretrained(name)(texts, add_special_tokens=False)['input_ids']
    assert parsed.special.findall(texts[0]) == ['</s>'] and not split.special.search(texts[0])
    assert parsed.fingerprint != split.fingerprint


def test_fast_tokenizer_that_differs_from_its_backend_is_used_whole(tmp_path, monkeypatch):
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text, *args, **options):
            text = [t.upper() for t in text] if isinstance(text, list) else text.upper()
            return super().__call__(text, *args, **options)

    name = make_tokenizer(tmp_path)
    monkeypatch.setattr(AutoTokenizer, 'from_pretrained', Shouting.from_pretrained)
    plan = plan_tokenizer(name, None, None)
    assert plan.backend is None
    assert Encoder(None, name).encode(['abc'])[0].tolist() == Shouting.from_pretrained(name)('abc')['input_ids']


def test_fingerprint_follows_what_decides_the_ids(tmp_path):
    name = make_tokenizer(tmp_path / 'a')
    same = make_tokenizer(tmp_path / 'b')
    other = make_tokenizer(tmp_path / 'c', vocab_size=380)
    prints = [
        plan_tokenizer(*a).fingerprint
        for a in [(name, None, None), (same, None, None), (other, None, None), (name, True, None), (name, True, True)]
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 4


def test_tokenizer_that_git_has_not_fetched(tmp_path):
    folder = make_tokenizer(tmp_path)
    (tmp_path / 'tokenizer.json').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n')
    with pytest.raises(ValueError, match='cannot be loaded .*tokenizer.json is a pointer of git-lfs.*git lfs pull'):
        plan_tokenizer(folder, None, None)


def test_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match='cannot be loaded .*expected a folder with a Hugging Face tokenizer'):
        plan_tokenizer(str(tmp_path / 'nothing'), None, None)


def _llama_like(words):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        max_token_length=8,
        special_tokens=[f'<0x{i:02X}>' for i in range(256)] + ['</s>'],
    )
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def _byte_level(words):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        words,
        trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return tokenizer


def _word_piece(words):
    tokenizer = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        words, trainers.WordPieceTrainer(vocab_size=300, special_tokens=['[UNK]'], show_progress=False)
    )
    return tokenizer


def _unigram(words):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        words, trainers.UnigramTrainer(vocab_size=200, special_tokens=['<unk>'], unk_token='<unk>', show_progress=False)
    )
    return tokenizer


@pytest.mark.parametrize('make', [_llama_like, _byte_level, _word_piece, _unigram])
def test_windows_give_the_ids_of_the_whole_text(make):
    encoder = Encoder(make(make_documents(40, 0)).to_str(), '')
    rng = random.Random(5)
    for window, overlap in ((400, 150), (1000, 300), (977, 301)):
        text = ''.join(
            rng.choice(['\n', '  ', ' ', '\t', ', ']).join(make_documents(1, rng.random(), (3, 30)))
            + rng.choice(['\n\n', ' ', '...', '\r\n'])
            for _ in range(120)
        )
        joined = encode_in_windows(partial(_encode_window, encoder._fast), text, window, overlap)
        assert len(text) > 5 * window
        assert joined.tolist() == encoder.encode([text])[0].tolist()


def test_windows_that_never_agree_are_given_up():
    def encode(text):  # ids that depend on the distance from the beginning
        return np.arange(len(text)), np.arange(len(text))

    assert encode_in_windows(encode, 'x' * 100, 50, 40) is None
    assert encode_in_windows(encode, 'x' * 50, 50, 40).tolist() == list(range(50))


@pytest.mark.parametrize('text', ['a' * 3000, 'word ' * 600, ' ' * 3000, '\u4f60\u597d\U0001f600' * 900])
def test_long_documents_of_few_words(tmp_path, monkeypatch, text):
    name = make_tokenizer(tmp_path)
    encoder = Encoder(plan_tokenizer(name, None, None).backend, '')
    whole = encoder.encode([text])[0]
    monkeypatch.setattr(tokenizer, 'WINDOW', 500)
    monkeypatch.setattr(tokenizer, 'OVERLAP', 200)
    assert [ids.tolist() for ids in encoder.encode(['x', text, 'y'])][1] == whole.tolist()
