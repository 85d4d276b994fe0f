"""prepare from end to end: against a plain computation, for any layout and number of workers, to any place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from llmfoundry.data.text_data import StreamingTextDataset
from streaming.base.util import clean_stale_shared_memory
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmshearing.data.mds import read_index, read_shard
from llmshearing.prepare import pipeline
from llmshearing.prepare.check import check
from llmshearing.prepare.pack import Journal
from llmshearing.prepare.pipeline import prepare
from tests.prepare.prepare_inputs import (  # noqa: F401
    make_documents,
    read_tokens,
    set_piece_bytes,
    small_pieces,
    spec,
    tokenizer,
    tree,
    write_jsonl,
)

SPLITS = ('eval', 'prune', 'continue')


def _place(text: str, seed: int) -> float:
    """Where a text falls in [0, 1), computed with Python integers from the definition."""
    mask = (1 << 64) - 1
    x = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()[8:], 'little')
    x = (x + (seed + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 46) / (1 << 18)


def _plainly(domains: dict[str, list[str]], tokenizer: str, seed: int, length: int) -> dict:
    """What ``spec`` asks for, one document after the other: ids, used and chosen documents per split and domain."""
    encode, seen, result = AutoTokenizer.from_pretrained(tokenizer), set(), {}
    for name, texts in domains.items():
        ids, kept = {s: [] for s in SPLITS}, {s: [] for s in SPLITS}
        for text in texts:
            if text in seen:
                continue
            seen.add(text)
            u = _place(text, seed)
            split = 'eval' if u < 0.2 else 'prune' if u < 0.5 else 'continue'
            ids[split] += encode(text)['input_ids'] + [encode.eos_token_id]
            kept[split].append(text)
        for split in SPLITS:
            samples = len(ids[split]) // length
            used = len(kept[split])
            if split == 'prune':
                samples = min(samples, -(-900 // length))
                starts = np.cumsum([0] + [len(encode(text)['input_ids']) + 1 for text in kept[split]])[:-1]
                used = np.count_nonzero(starts < samples * length)
            rows = np.array(ids[split][: samples * length]).reshape(samples, length)
            result[split, name] = rows, used, len(kept[split])
    return result


def _texts(spec):
    read = lambda p: [json.loads(line)['text'] for line in Path(p).read_text().splitlines()]  # noqa: E731
    web = Path(spec['domains']['web'])
    return {'web': read(web / '0.jsonl') + read(web / '1.jsonl'), 'code': read(spec['domains']['code'])}


def test_the_result_is_that_of_a_plain_computation(spec):
    manifest = prepare(spec, workers=2)
    out = Path(spec['out'])
    for (split, name), (rows, used, chosen) in _plainly(_texts(spec), spec['tokenizer'], 3, 32).items():
        assert np.array_equal(read_tokens(out / split / name), rows), (split, name)
        entry = manifest['domains'][name]['splits'][split]
        assert (entry['samples'], entry['tokens']) == (len(rows), rows.size)
        assert (entry['documents'], entry['documents_over_budget']) == (used, chosen - used)
        assert split != 'prune' or used < chosen
    assert manifest['domains']['web']['duplicates'] == 2
    assert manifest['domains']['code']['duplicates'] == 5  # one of its own, four that web has too
    assert manifest['domains']['web']['documents'] == 66
    assert manifest['splits']['prune']['tokens'] == 2 * 928
    assert manifest == json.loads((out / 'manifest.json').read_text())
    assert sorted(path.name for path in out.iterdir()) == ['continue', 'eval', 'manifest.json', 'prune']


def test_same_bytes_for_any_number_of_workers_and_pieces(spec, tmp_path, monkeypatch):
    trees = []
    for workers, piece_bytes in ((1, 8000), (3, 8000), (2, 300), (2, 1 << 22)):
        set_piece_bytes(monkeypatch, piece_bytes)
        spec['out'] = str(tmp_path / f'{workers}-{piece_bytes}')
        prepare(spec, workers=workers)
        trees.append(tree(Path(spec['out'])))
    assert len(trees[0]) == 13
    assert all(other == trees[0] for other in trees[1:])


def shards_of(spec) -> dict[str, str]:
    """All that a run wrote but the manifest, which names the input."""
    return {name: content for name, content in tree(Path(spec['out'])).items() if name != 'manifest.json'}


def test_file_layout_does_not_matter(spec, tmp_path):
    prepare(spec, workers=2)
    texts = _texts(spec)
    moved = {
        **spec,
        'out': str(tmp_path / 'out2'),
        'domains': {
            'web': [write_jsonl(tmp_path / 'in2' / f'{i:03}.jsonl', texts['web'][i : i + 5]) for i in range(0, 66, 5)],
            'code': write_jsonl(tmp_path / 'in2' / 'code.jsonl', texts['code']),
        },
    }
    prepare(moved, workers=2)
    assert shards_of(moved) == shards_of(spec)


def _documents_in(folder: Path, tokenizer) -> set[str]:
    ids = np.concatenate(read_tokens(folder)).tolist()
    ends = [i for i, token in enumerate(ids) if token == tokenizer.eos_token_id]
    return {tokenizer.decode(ids[a + 1 : b]) for a, b in zip([-1, *ends], ends)}


def test_no_document_is_in_two_splits_or_domains(spec, tmp_path, tokenizer):
    """Also where a text's two domains have different budgets, so that its hash alone would put it in two splits."""
    shared = make_documents(200, 5)
    spec['domains'] = {
        name: {'path': write_jsonl(tmp_path / f'{name}.jsonl', own + shared), 'tokens': tokens}
        for name, own, tokens in (
            ('a', make_documents(50, 6), {'eval': 9000}),
            ('b', make_documents(50, 7), {'eval': 1000, 'prune': 5000}),
        )
    }
    spec['splits'] = {'eval': {'tokens': 3000}, 'prune': {'tokens': 3000}, 'continue': {}}
    prepare(spec, workers=2)
    decode = AutoTokenizer.from_pretrained(tokenizer)
    found = {(s, d): _documents_in(Path(spec['out']) / s / d, decode) for s in SPLITS for d in 'ab'}
    everything = [text for texts in found.values() for text in texts]
    assert len(everything) == len(set(everything)) > 250
    assert not any(text.startswith('5/') for split in SPLITS for text in found[split, 'b'])


def test_budgets(spec, tokenizer):
    spec['domains']['web'] = {'path': spec['domains']['web'], 'tokens': {'eval': 1000, 'continue': 64}}
    spec['domains']['code'] = {'path': spec['domains']['code'], 'tokens': {'eval': 0}}
    spec['splits'] = {'eval': {'tokens': 500}, 'prune': {'tokens': '1k'}, 'continue': {'tokens': 10**6}}
    manifest = prepare(spec, workers=2)
    got = {(s, d): e['splits'][s]['tokens'] for d, e in manifest['domains'].items() for s in e['splits']}
    rest = got.pop(('continue', 'code'))
    assert got == {('eval', 'web'): 1024, ('prune', 'web'): 1024, ('prune', 'code'): 1024, ('continue', 'web'): 64}
    assert 1000 < rest < 10**6
    met = {(s, d): e['splits'][s]['budget_met'] for d, e in manifest['domains'].items() for s in e['splits']}
    assert [key for key, value in met.items() if not value] == [('continue', 'code')]
    assert not (Path(spec['out']) / 'eval' / 'code').exists()


def test_nothing_is_tokenized_when_the_budgets_are_met(spec, monkeypatch):
    tokenized, append = [], Journal.append

    def record(self, arrays, **facts):
        tokenized.extend([facts['piece']] if 'piece' in facts else [])
        append(self, arrays, **facts)

    monkeypatch.setattr(Journal, 'append', record)
    spec['splits'] = {'continue': {'fraction': 1.0, 'tokens': 64}}
    prepare(spec, workers=1)
    assert tokenized == [0, 1, 0, 1]  # of four and five: the first of each domain is enough, the second was begun


def test_one_large_document_is_cut_at_the_budget(spec, tmp_path):
    books = make_documents(1, 1, (5000, 5000)) + make_documents(40, 2)
    spec['domains'] = {'books': write_jsonl(tmp_path / 'b.jsonl', books)}
    spec['splits'] = {'eval': {'tokens': 640}, 'prune': {'tokens': 640}, 'continue': {'tokens': 640}}
    splits = prepare(spec, workers=1)['domains']['books']['splits']
    assert {name: entry['tokens'] for name, entry in splits.items()} == dict.fromkeys(SPLITS, 640)


@pytest.mark.parametrize(
    ('bos', 'eos', 'first', 'last'), [(True, False, [0], []), (True, True, [0], [1]), ('auto', 'auto', [], [1])]
)
def test_tokens_around_documents(spec, tmp_path, tokenizer, bos, eos, first, last):
    texts = make_documents(30, 8)
    spec.update(domains={'d': write_jsonl(tmp_path / 'd.jsonl', texts)}, splits={'continue': {}}, bos=bos, eos=eos)
    prepare(spec, workers=1)
    encode = AutoTokenizer.from_pretrained(tokenizer)
    ids = np.concatenate([first + encode(text)['input_ids'] + last for text in texts])
    assert np.array_equal(np.concatenate(read_tokens(Path(spec['out']) / 'continue' / 'd')), ids[: len(ids) // 32 * 32])


def test_large_vocabulary_is_stored_in_four_bytes(spec, tmp_path):
    large = Tokenizer(models.WordLevel({f'w{i}': i for i in range(70_000)}, unk_token='w0'))
    large.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=large, eos_token='w1').save_pretrained(tmp_path / 'large')
    spec.update(
        tokenizer=str(tmp_path / 'large'),
        splits={'continue': {}},
        domains={'d': write_jsonl(tmp_path / 'd.jsonl', ['w69999 w65536 ' * 40])},
    )
    assert prepare(spec, workers=1)['encoding'] == 'ndarray:uint32:32'
    assert read_tokens(Path(spec['out']) / 'continue' / 'd').tolist() == [[69999, 65536] * 16] * 2


def test_streaming_text_dataset_reads_it(spec, tokenizer):
    spec.update(compression='zstd:3', hashes=['sha1'], shard_size='4kb')
    prepare(spec, workers=2)
    clean_stale_shared_memory()
    folder = Path(spec['out']) / 'continue' / 'code'
    dataset = StreamingTextDataset(
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        max_seq_len=32,
        batch_size=1,
        remote=str(folder),
        local=str(folder) + '-cache',
        validate_hash='sha1',
    )
    rows, *_ = _plainly(_texts(spec), tokenizer, 3, 32)['continue', 'code']
    assert len(json.loads((folder / 'index.json').read_text())['shards']) > 1
    assert np.array_equal(np.stack([dataset[i].numpy() for i in range(len(dataset))]), rows)


def test_documents_made_in_python(spec, tmp_path):
    direct = {**spec, 'domains': {}, 'out': str(tmp_path / 'direct')}
    texts = _texts(spec)
    prepare(spec, workers=1)
    manifest = prepare(direct, documents={name: iter(documents) for name, documents in texts.items()}, workers=1)
    assert shards_of(direct) == shards_of(spec)
    again = prepare(direct, documents=texts, workers=1)  # recognised by its content
    assert again == manifest and not (tmp_path / 'direct' / '.prepare').exists()


@pytest.mark.parametrize('keep', [True, False])
def test_remote_output(spec, tmp_path, monkeypatch, keep):
    """Streaming's uploader for folders stands for the others; the index goes last."""
    from streaming.base.storage.upload import LocalUploader

    prepare({**spec, 'out': str(tmp_path / 'whole')}, workers=1)
    names, copy = [], LocalUploader.upload_file

    def record(self, name):
        copy(self, name)
        if self.remote:
            names.append(name)

    monkeypatch.setattr(LocalUploader, 'upload_file', record)
    out = [spec['out'], str(tmp_path / 'remote')]
    if keep:
        prepare({**spec, 'out': out}, workers=1)
        assert tree(Path(spec['out'])) == tree(tmp_path / 'whole')
    else:  # an address alone, as for s3://
        parsed = pipeline.parse_spec({**spec, 'out': out, 'work': str(tmp_path)})
        object.__setattr__(parsed, 'out', None)
        prepare(parsed, workers=1)
        assert not Path(spec['out']).exists() and not (tmp_path / '.prepare').exists()
    assert tree(tmp_path / 'remote') == tree(tmp_path / 'whole')
    pairs = ['index.json' if name == 'index.json' else 'shard' for name in names if name != 'manifest.json']
    assert pairs == ['shard', 'index.json'] * 6 and names[-1] == 'manifest.json'


def test_remote_address_is_tried_first(spec):
    with pytest.raises(ValueError, match="begins with 'ftp', which Streaming cannot write to; it can write to alipan"):
        prepare({**spec, 'out': 'ftp://host/x'}, workers=1)


def test_working_folder_on_another_disk(spec, tmp_path):
    other = Path('/dev/shm') / f'prepare-{os.getpid()}'
    if not os.path.isdir('/dev/shm') or os.stat('/dev/shm').st_dev == os.stat(tmp_path).st_dev:
        pytest.skip('needs a second file system at /dev/shm')
    prepare({**spec, 'out': str(tmp_path / 'whole')}, workers=1)
    try:
        prepare({**spec, 'work': str(other)}, workers=1)
        assert list(other.iterdir()) == []
    finally:
        shutil.rmtree(other)
    assert tree(Path(spec['out'])) == tree(tmp_path / 'whole')


def test_shards_that_streaming_has_unpacked_are_checked_as_they_are(spec):
    spec.update(compression='zstd:3', shard_size='4kb')
    prepare(spec, workers=1)
    folder = Path(spec['out']) / 'continue' / 'code'
    packed = check(folder)
    for reader in read_index(folder):
        (folder / reader.raw_data.basename).write_bytes(read_shard(folder, reader))
        (folder / reader.zip_data.basename).unlink()
    unpacked = check(folder)[next(iter(packed))]
    assert unpacked['samples'] == next(iter(packed.values()))['samples'] > 0
