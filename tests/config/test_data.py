"""Data and tokenizers that do not belong to the source are refused before the run, whichever loader reads them."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from streaming import MDSWriter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmshearing.compat.transformers import read_tokenizer
from llmshearing.config.data import check_data
from llmshearing.config.tokenizer import check_same_tokenizer, open_tokenizer
from tests.data.test_fingerprint import swap, write_manifest
from tests.tiny_run import tiny_source, tiny_tokenizer

LENGTH = 8
ROWS = [np.full(LENGTH, number, np.uint16) for number in range(10)]


def other_tokenizer():
    """Another tokenizer of the same size."""
    stored = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    swap('w3', 'w4')(stored)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(stored)), pad_token='<pad>', bos_token='<s>', eos_token='</s>'
    )


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    work = tmp_path_factory.mktemp('world')
    tiny_source(work / 'source')
    other_tokenizer().save_pretrained(work / 'other')
    write(work / 'data/prune/web')
    shutil.copytree(work / 'data', work / 'strange')
    write_manifest(work / 'data', tiny_tokenizer())
    write_manifest(work / 'strange', other_tokenizer())
    return SimpleNamespace(path=work, data=work / 'data/prune/web', strange=work / 'strange/prune/web')


def write(folder, rows=ROWS, columns=('tokens', 'ndarray:uint16'), **settings):
    with MDSWriter(out=str(folder), columns=dict([columns]), **settings) as writer:
        for row in rows:
            writer.write({columns[0]: row})
    return folder


def loader(folder, name='text', **dataset):
    return {'name': name, 'dataset': {'local': str(folder), 'max_seq_len': LENGTH, **dataset}}


def check(train, evaluated=(), tokenizer=None):
    check_data({'train_loader': train, 'eval_loaders': list(evaluated)}, tokenizer or tiny_tokenizer())


def test_data_of_another_tokenizer(world):
    good, bad = loader(world.data), loader(world.strange)
    check(good, [good])
    by_stream = loader(None, streams={'web': {'local': str(world.strange.parent), 'split': 'web'}})
    fetched = loader(world.path / 'cache', remote=str(world.strange))
    for train, evaluated in ((bad, []), (good, [good, bad]), (loader('', 'dynamic_text'), [bad]), (by_stream, [])):
        with pytest.raises(ValueError, match='strange was made with another tokenizer, .one.'):
            check(train, evaluated)
    with pytest.raises(ValueError, match='strange was made with another tokenizer'):
        check(good, [fetched])


def test_the_tokenizer_is_the_source_s_own(world, tmp_path, caplog):
    source, model = world.path / 'source', {'pretrained_model_name_or_path': str(world.path / 'source')}

    def compare(name, **changes):
        check_same_tokenizer(open_tokenizer({'name': str(name)}), str(name), {**model, **changes})

    compare(source)
    with pytest.raises(
        ValueError, match=rf'^tokenizer.name: the tokenizer in {source} is another one than that in \S*other'
    ):
        compare(world.path / 'other')
    compare(world.path / 'other', pretrained=False)  # whose weights know no ids yet
    more = tiny_tokenizer()
    more.save_pretrained(tmp_path / 'same')
    more.add_tokens(['more'])
    more.save_pretrained(tmp_path / 'more')
    tiny_tokenizer(90).save_pretrained(tmp_path / 'less')
    for name in ('same', 'more', 'less'):
        compare(tmp_path / name)
    assert not caplog.text
    shutil.copy(source / 'config.json', tmp_path / 'config.json')
    compare(world.path / 'other', pretrained_model_name_or_path=str(tmp_path))
    assert 'has no tokenizer that could be compared with tokenizer.name' in caplog.text


def test_a_tokenizer_that_does_not_open(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / 'tokenizer.json').write_text('{')
    with pytest.raises(ValueError, match=f'^the tokenizer in {tmp_path} does not open'):
        read_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=f"^tokenizer.name: no tokenizer of '{tmp_path}' can be read"):
        open_tokenizer({'name': str(tmp_path)})


@pytest.mark.parametrize('long, lost', [(30, '65%'), (8, '0%')])
def test_raw_text(world, tmp_path, caplog, long, lost):
    texts = [' '.join(['w1'] * words) for words in (4, long)]
    raw = loader(write(tmp_path / 'raw', texts, ('text', 'str')))
    told = rf'local: {tmp_path}/raw holds raw text. .* max_seq_len=8, which leaves out {lost} of .* use `dynamic_text`'
    good = loader(world.data)
    if long > LENGTH:
        with pytest.raises(ValueError, match=f'^train_loader.dataset.{told}'):
            check(raw)
    else:
        check(raw)
    with caplog.at_level(logging.WARNING):
        check(good, [good, raw])
    assert re.search(rf'eval_loader\[1\].dataset.{told}', caplog.text)


def test_sequences_that_are_longer_than_served(world, caplog):
    long, good = loader(world.data, max_seq_len=6), loader(world.data)
    with pytest.raises(ValueError, match='serves the first max_seq_len=6 of each, which leaves out 25%; set .* to 8'):
        check(long)
    check(good, [long])
    assert 'eval_loader[0].dataset.local' in caplog.text and 'leaves out 25%' in caplog.text


@pytest.mark.parametrize(
    'rows, encoding, match',
    [
        ([np.ones(8, np.float32)], 'ndarray:float32:8', 'column tokens is ndarray:float32:8, expected .*whole numbers'),
        ([np.ones(8, np.float32)], 'ndarray', 'sample 0 of .*00000.mds: its tokens are float32, expected whole'),
        (
            [np.full(8, number, np.int32) for number in (0, 1, 2, 97)],
            'ndarray:int32:8',
            '00001.mds: it has the token id 97, outside',
        ),
        (
            [np.full(8, number, np.int32) for number in (0, 1, 2, -1)],
            'ndarray:int32:8',
            '00001.mds: it has the token id -1, outside',
        ),
    ],
)
def test_ids_that_are_none(world, tmp_path, rows, encoding, match):
    wrong = loader(write(tmp_path / 'wrong', rows, ('tokens', encoding), size_limit=300))
    for train, evaluated, where in ((wrong, [], 'train_loader'), (loader(world.data), [wrong], r'eval_loader\[0\]')):
        with pytest.raises(ValueError, match=rf'^{where}.dataset.local: .*{match}'):
            check(train, evaluated)


def test_shards_that_do_not_fit_their_index(world, tmp_path):
    """An evaluator's used to end the run at its first evaluation."""
    folder = write(tmp_path / 'cut')
    shard, index = folder / 'shard.00000.mds', folder / 'index.json'
    whole = json.loads(index.read_text())
    whole['shards'][0]['samples'] += 5
    index.write_text(json.dumps(whole))
    for message in ('holds 10 samples where its index says 15', r'has 20 bytes where', '00000.mds of .* is missing'):
        with pytest.raises(ValueError, match=rf'^eval_loader\[0\].dataset.local: .*{message}.*fetch or prepare'):
            check(loader(world.data), [loader(folder)])
        shard.write_bytes(shard.read_bytes()[:20]) if 'holds' in message else shard.unlink(missing_ok=True)


def test_compressed_shards_that_cannot_be_unpacked_have_a_remedy_of_their_own(world, tmp_path, monkeypatch):
    folder = write(tmp_path / 'packed', compression='zstd')
    monkeypatch.setattr(os, 'access', lambda *_: False)
    with pytest.raises(ValueError, match=r'^eval_loader\[0\].*as its `remote`, and a folder that can as `local`\.$'):
        check(loader(world.data), [loader(folder)])


def test_samples_of_other_lengths_are_told(tmp_path, caplog):
    odd = loader(write(tmp_path / 'odd', [*ROWS[:6], ROWS[6][:4], *ROWS[7:]]))
    check(odd, [odd])
    assert caplog.text.count('sample 6 has 10 bytes of tokens where the others have 18') == 2
