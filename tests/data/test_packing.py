"""Raw text in MDS is packed as `prepare` packs it, or refused with what would be lost."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from streaming import MDSWriter
from transformers import AutoTokenizer

from llmshearing.data import packing
from llmshearing.data.dynamic_text import build_dynamic_text_dataloader
from llmshearing.prepare.pipeline import prepare
from tests.dynamic_text_world import LOADERS, close_loaders, on_ranks, write_domains
from tests.prepare.prepare_inputs import make_documents, make_tokenizer, read_tokens

TEXTS = [*make_documents(20, 1, (50, 90)), *make_documents(20, 2, (1, 3))]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture
def folder(tmp_path):
    with MDSWriter(out=str(tmp_path / 'raw'), columns={'text': 'str'}, size_limit=4000) as writer:
        for text in TEXTS:
            writer.write({'text': text})
    write_domains(tmp_path, {'tokens': 9}, seq_len=32)
    yield tmp_path
    close_loaders()


def loader(folder, made, domains=('raw',), **settings):
    config = {'local': str(folder), 'domains': list(domains), 'round_batches': 20, 'max_seq_len': 32, **settings}
    built = build_dynamic_text_dataloader(AutoTokenizer.from_pretrained(made), 4, config, pin_memory=False).dataloader
    LOADERS.append(built)
    return built


def packed(made):
    """Samples of 32 tokens: documents end to end, each with its end token."""
    tokenizer = AutoTokenizer.from_pretrained(made)
    ids = np.concatenate([tokenizer(text)['input_ids'] + [tokenizer.eos_token_id] for text in TEXTS])
    return ids[: len(ids) // 32 * 32].reshape(-1, 32)


def test_every_token_is_seen_and_every_document_ends(folder, made):
    rows, seen = packed(made), set()
    assert 40 < len(rows) < 4 * 20
    for dataset in (loader(folder, made), loader(folder, made)):  # packed, and as it was packed
        batches = [row for batch in dataset for row in batch['input_ids'].tolist()]
        seen = {tuple(row) for row in batches[: len(rows)]}  # the first pass
        assert seen == {tuple(row) for row in rows.tolist()}
    assert len(list((folder / 'raw').glob('.packed-*'))) == 1
    mixed = loader(folder, made, ('raw', 'tokens'))
    assert mixed.dataset.rounds.sizes == {'raw': len(rows), 'tokens': 9}


def test_it_is_what_prepare_makes_of_the_folder(folder, made, tmp_path):
    spec = {'tokenizer': made, 'max_seq_len': 32, 'out': str(tmp_path / 'out'), 'splits': {'continue': {}}}
    prepare({**spec, 'domains': {'raw': str(folder / 'raw')}}, workers=1)
    assert np.array_equal(read_tokens(tmp_path / 'out/continue/raw'), packed(made))


def test_special_tokens_that_its_text_spells_are_told(folder, made, caplog):
    loader(folder, made)
    assert 'special tokens' not in caplog.text
    with MDSWriter(out=str(folder / 'spelled'), columns={'text': 'str'}) as writer:
        for text in [*TEXTS, 'the </s>', '<s> and <s>']:
            writer.write({'text': text})
    for _ in range(2):  # packed, and as it was packed
        loader(folder, made, ['spelled'])
    assert f'{folder}/spelled/: 2 documents spell special tokens, such as </s>' in caplog.text
    assert caplog.text.count('special tokens') == 1


def build(rank, folder, made):
    loader(folder, made)


def test_ranks_wait_for_the_one_that_packs(folder, made):
    on_ranks(2, build, folder, made)
    assert len(list((folder / 'raw').glob('.packed-*'))) == 1


def lost(made) -> float:
    lengths = np.array([len(ids) for ids in AutoTokenizer.from_pretrained(made)(TEXTS)['input_ids']])
    return np.maximum(lengths - 32, 0).sum() / lengths.sum()


def test_what_is_too_much_is_refused_with_the_share_that_would_be_lost(folder, made, monkeypatch):
    monkeypatch.setattr(packing, 'MOST_BYTES', 100)
    with pytest.raises(ValueError, match=rf"'raw' holds .* GB of raw text: unpacked, {lost(made):.0%} of its tokens"):
        loader(folder, made)


def test_a_folder_that_cannot_be_written(folder, made, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK)  # root may write everywhere
    with pytest.raises(ValueError, match='cannot be written to pack it there: unpacked, .*Pack it before the run'):
        loader(folder, made)


def test_remote_text_is_refused(folder, made, tmp_path):
    with pytest.raises(ValueError, match="'raw' has raw text at a remote place.* llmshearing prepare"):
        loader(tmp_path / 'cache', made, remote=str(folder))


@pytest.mark.parametrize(('encoding', 'value'), [('bytes', b'so'), ('json', {'text': 'so'})])
def test_text_that_is_no_string_is_left_to_prepare(tmp_path, made, encoding, value):
    with MDSWriter(out=str(tmp_path / 'raw'), columns={'text': encoding}) as writer:
        for _ in range(40):
            writer.write({'text': value})
    with pytest.raises(ValueError, match=f'raw/? holds its text as {encoding}, .*llmshearing prepare'):
        loader(tmp_path, made)


def test_too_little_text(tmp_path, made):
    with MDSWriter(out=str(tmp_path / 'raw'), columns={'text': 'str'}) as writer:
        writer.write({'text': 'a'})
    with pytest.raises(ValueError, match='holds 2 tokens of text, less than one sample of 32'):
        loader(tmp_path, made)
    assert not list((tmp_path / 'raw').glob('.packed*'))


def test_two_runs_may_pack_one_folder_at_once(folder, made):
    tokenizer = AutoTokenizer.from_pretrained(made)
    out = packing.packed_folder('raw', folder / 'raw', tokenizer, 32)
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(packing.pack_text, folder / 'raw', out, tokenizer, 32) for _ in range(3)]:
            done.result()
    assert np.array_equal(read_tokens(out), packed(made))


def test_two_nodes_pack_one_folder_on_a_disk_without_locks(folder, made, monkeypatch):
    tokenizer, documents = AutoTokenizer.from_pretrained(made), packing._documents
    out = packing.packed_folder('raw', folder / 'raw', tokenizer, 32)
    left = out.with_name(f'{out.name}.new-of-a-killed-run')
    left.mkdir()
    os.utime(left, (0, 0))

    def overtaken(*arguments):
        for part in documents(*arguments):
            monkeypatch.setattr(packing, '_documents', documents)
            packing.pack_text(folder / 'raw', out, tokenizer, 32)  # as the other node would, meanwhile
            yield part

    monkeypatch.setattr(packing, '_documents', overtaken)
    monkeypatch.setattr(packing, 'hold_lock', lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(packing, 'MDSWriter', partial(MDSWriter, size_limit=1000))
    packing.pack_text(folder / 'raw', out, tokenizer, 32)
    assert np.array_equal(read_tokens(out), packed(made)) and len(list(out.glob('*.mds'))) > 2
    assert [path.name for path in (folder / 'raw').glob('.packed*')] == [out.name]
