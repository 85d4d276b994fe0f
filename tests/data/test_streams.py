"""What is said of domains and weights that cannot be used, before anything is read."""

from __future__ import annotations

import json

import pytest

from llmshearing.config.loaders import check_dataset
from llmshearing.data.streams import build_domain_streams, read_proportions
from tests.dynamic_text_world import write_domains

DATASET = {'max_seq_len': 8, 'round_batches': 2, 'local': 'data'}


@pytest.mark.parametrize(
    ('own', 'words'),
    [
        ({'locall': 'x'}, "domains.a: unknown key 'locall'. Did you mean 'local'? Possible: remote, local, split,"),
        ({'proportion': 0.5}, "domains.a: unknown key 'proportion'."),
        ({'download_retry': 'twice'}, "domains.a.download_retry: expected a whole number or null, got 'twice'"),
        ('data/a', "domains.a: expected keys and values, got 'data/a'"),
    ],
)
def test_settings_of_a_domain(own, words):
    with pytest.raises(ValueError) as error:
        build_domain_streams({'a': own}, 'data', None)
    assert str(error.value).startswith(words)
    with pytest.raises(ValueError) as error:  # from a YAML, before anything is built
        check_dataset('train_loader.dataset', 'dynamic_text', {**DATASET, 'domains': {'b': None, 'a': own}})
    if isinstance(own, dict):
        assert str(error.value).startswith(f'train_loader.dataset.{words}')


@pytest.mark.parametrize('limit', ['-1gb', '0b', 'much'])
def test_a_cache_of_no_bytes(limit):
    with pytest.raises(ValueError, match=f"dataset.cache_limit: expected a number of bytes above 0, .* got '{limit}'"):
        check_dataset('train_loader.dataset', 'dynamic_text', {**DATASET, 'cache_limit': limit})


def test_domains_that_are_well_described(tmp_path):
    write_domains(tmp_path, {'a': 3, 'b': 3})
    domains = {'a': None, 'c': {'local': str(tmp_path / 'b'), 'keep_zip': True, 'validate_hash': 'xxh64'}}
    for given in (domains, ['a', 'b']):
        check_dataset('train_loader.dataset', 'dynamic_text', {**DATASET, 'domains': given, 'cache_limit': '1gb'})
    assert list(build_domain_streams(domains, str(tmp_path), None)) == ['a', 'c']


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'a: 1', 'is not JSON (Expecting value'),
        (b'\xff', 'is not JSON ('),
        (b'[1]', 'expected a JSON object, got a list'),
        (b'{"proportions": {"a": "much", "b": true, "c": 1}}', "must be numbers, but got {'a': 'much', 'b': True}"),
    ],
)
def test_a_file_of_proportions_that_is_something_else(tmp_path, content, words):
    path = tmp_path / 'weights.json'
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_proportions(str(path))
    assert str(path) in str(error.value) and words in str(error.value)
    path.write_text('{"proportions": {"a": 1, "b": 0.5}}')
    assert read_proportions(str(path)) == {'a': 1, 'b': 0.5}


@pytest.mark.parametrize('shard', [{}, {'samples': 1}, {'samples': 1, 'format': 'mds'}])
def test_an_index_of_another_form_is_named(tmp_path, shard):
    (tmp_path / 'web').mkdir()
    (tmp_path / 'web' / 'index.json').write_text(json.dumps({'version': 2, 'shards': [shard]}))
    with pytest.raises(ValueError, match='Cannot read 1 of 1 domains .*not an index of MDS shards'):
        build_domain_streams(['web'], str(tmp_path), None)
