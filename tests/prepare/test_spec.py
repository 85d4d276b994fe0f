"""The keys of a spec: what is accepted, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llmshearing.prepare.spec import parse_spec, parse_tokens

LEAST = {'tokenizer': 't', 'max_seq_len': 8, 'out': 'o', 'domains': {'web': 'web.jsonl'}}
YAMLS = Path(__file__).parents[2] / 'yamls' / 'data'


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        (0, 0),
        (7, 7),
        (1e6, 10**6),
        ('2_000_000', 2 * 10**6),
        ('400M', 4 * 10**8),
        ('0.4B', 4 * 10**8),
        ('1.5k', 1500),
        ('2T', 2 * 10**12),
        (' 33.5 B', 335 * 10**8),
        ('1e3', 1000),
    ],
)
def test_counts(text, number):
    assert parse_tokens(text, 'x') == number


@pytest.mark.parametrize('text', ['', 'many', '1.5', -1, True, None, '3X', float('nan'), '1e400', [1]])
def test_counts_refused(text):
    with pytest.raises(ValueError, match='x is .*expected a number of tokens'):
        parse_tokens(text, 'x')


def test_defaults():
    spec = parse_spec(LEAST)
    assert (spec.out, spec.remote, spec.work, spec.bos, spec.eos) == ('o', None, 'o/.prepare', None, None)
    assert [(s.name, s.fraction, s.tokens) for s in spec.splits] == [
        ('eval', 0.02, None),
        ('prune', 0.1, None),
        ('continue', None, None),
    ]
    assert spec.domains[0].path == ('web.jsonl',)


def test_budgets_of_a_domain_override_the_split():
    spec = parse_spec(
        {
            **LEAST,
            'splits': {'eval': {'tokens': '2M'}, 'continue': None},
            'domains': {'a': 'x', 'b': {'path': 'y', 'tokens': {'eval': '3k', 'continue': 0}}},
        }
    )
    assert [[spec.budget(d, s) for s in spec.splits] for d in spec.domains] == [[2 * 10**6, None], [3000, 0]]


@pytest.mark.parametrize(
    ('out', 'expected'),
    [
        ('dir', ('dir', None)),
        ('s3://b/x', (None, 's3://b/x')),
        ('dbfs:/Volumes/x', (None, 'dbfs:/Volumes/x')),
        (['l', 'gs://b'], ('l', 'gs://b')),
    ],
)
def test_places(out, expected):
    spec = parse_spec({**LEAST, 'out': out})
    assert (spec.out, spec.remote) == expected


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'max_seqlen': 4}, "the spec: unknown key 'max_seqlen'. Did you mean 'max_seq_len'"),
        ({'domains': {'a': {'paths': 'x'}}}, "domains.a: unknown key 'paths'. Did you mean 'path'"),
        (
            {'domains': {'a': {'path': 'x', 'tokens': {'evel': 1}}}},
            "domains.a.tokens: unknown key 'evel'. Did you mean 'eval'",
        ),
        ({'splits': {'eval': {'token': 1}}}, "splits.eval: unknown key 'token'. Did you mean 'tokens'"),
        ({'zzz': 1}, 'Possible: tokenizer, max_seq_len'),
        ({'tokenizer': None}, "lacks the key 'tokenizer'"),
        ({'max_seq_len': 1}, 'max_seq_len: expected a whole number of at least 2, got 1'),
        ({'max_seq_len': 2.5}, 'max_seq_len: expected a whole number of at least 2, got 2.5'),
        ({'max_seq_len': float('inf')}, 'max_seq_len: expected a whole number of at least 2, got inf'),
        ({'seed': float('nan')}, 'seed: expected a whole number of at least 0, got nan'),
        ({'domains': {'Web': '/x', 'web': '/y'}}, "domain names 'Web' and 'web' differ in case alone"),
        ({'splits': {'a': {'tokens': 9}, 'A': {}}}, "split names 'a' and 'A' differ in case alone"),
        ({'hashes': 5}, 'hashes is 5; expected a list of names such as [sha1]'),
        ({'hashes': [5]}, 'hashes is [5]; expected a list of names'),
        ({'compression': ['zstd']}, "compression is ['zstd']; expected text, or null"),
        ({'work': 3}, 'work is 3; expected text, or null'),
        ({'domains': {'a': {'path': 'x', 'glob': 5}}}, 'domains.a.glob is 5; expected text, or null'),
        ({'domains': {'a': {'path': 'x', 'separator': 5}}}, 'domains.a.separator is 5; expected text, or null'),
        ({'domains': {}}, 'domains is {}; expected a mapping'),
        ({'domains': {'a': {'format': 'jsonl'}}}, "domains.a lacks the key 'path'"),
        ({'domains': {'a': {'path': []}}}, 'domains.a.path is'),
        ({'domains': {'a/b': 'x'}}, "domain name 'a/b' becomes a folder name"),
        ({'domains': {'a': {'path': 'x', 'format': 'csv'}}}, "format is 'csv'; expected one of auto, jsonl"),
        ({'domains': {'a': {'path': 'x', 'separator': ''}}}, 'separator is empty'),
        ({'splits': {'a': {'fraction': 0}}}, 'splits.a.fraction: expected a number above 0 and at most 1, got 0'),
        ({'splits': {'a': {'fraction': 0.6}, 'b': {'fraction': 0.5}}}, 'add up to 1.1'),
        ({'splits': {'a': {}, 'b': {}}}, 'splits.a has neither fraction nor tokens'),
        ({'splits': {'a': {'tokens': 0}, 'b': {'tokens': 0}}}, 'every split of every domain has tokens: 0'),
        ({'splits': {'a': {'tokens': 'few'}}}, 'splits.a.tokens is'),
        ({'bos': 'maybe'}, "bos is 'maybe'; expected auto, true or false"),
        ({'out': 3}, 'out is 3; expected a folder'),
        ({'seed': -1}, 'seed: expected a whole number of at least 0, got -1'),
        (
            {'domains': {False: 'x'}},
            'domain name False: without quotes YAML reads it as bool, not as text; put it in quotes',
        ),
        ({'domains': {2023: 'x'}}, 'domain name 2023: without quotes YAML reads it as int'),
        ({'splits': {True: {}}}, 'split name True: without quotes YAML reads it as bool'),
        ({'domains': {'a': '$NOT_SET_AT_ALL/x'}}, "domains.a.path: '$NOT_SET_AT_ALL/x' has the environment variable"),
        ({'out': '~nobody-of-that-name/x'}, "out: '~nobody-of-that-name/x' begins with the home folder"),
    ],
)
def test_refused(change, words):
    with pytest.raises(ValueError) as error:
        parse_spec({**LEAST, **change})
    assert words in str(error.value)


@pytest.mark.parametrize('path', sorted(YAMLS.glob('*.yaml')), ids=lambda path: path.name)
def test_shipped_files(path):
    spec = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    spec.pop('variables', None)
    assert [split.name for split in parse_spec(spec).splits] == ['eval', 'prune', 'continue']


def test_paths_mean_what_a_shell_means(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('PLACE', 'here')
    paths = {
        'tokenizer': '~/tok',
        'out': ['~/$PLACE', 's3://b/${PLACE}'],
        'work': '$PLACE',
        'domains': {'a': '~/a.txt'},
    }
    spec = parse_spec({**LEAST, **paths})
    assert (spec.tokenizer, spec.out, spec.remote) == (f'{tmp_path}/tok', f'{tmp_path}/here', 's3://b/here')
    assert (spec.work, spec.domains[0].path) == ('here/.prepare', (f'{tmp_path}/a.txt',))
