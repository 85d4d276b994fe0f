"""Data of another tokenizer is refused by whatever reads it; the same tokenizer is known again however it is stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmshearing.data.fingerprint import check_tokenizer, describe_tokenizer, tokenizer_identity
from tests.dynamic_text_world import close_loaders, dynamic_loader, tiny_tokenizer, write_domains
from tests.prepare.prepare_inputs import make_tokenizer


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp('tokenizer'))


def write_manifest(out: Path, tokenizer, *keep: str, **facts) -> Path:
    """A manifest as `prepare` writes it, and the folder of one domain below it."""
    (out / 'prune' / 'web').mkdir(parents=True, exist_ok=True)
    described = {'name': 'one', 'class': 'PreTrainedTokenizerFast', **describe_tokenizer(tokenizer), **facts}
    described = {key: value for key, value in described.items() if not keep or key in keep}
    (out / 'manifest.json').write_text(json.dumps({'tokenizer': described}))
    return out / 'prune' / 'web'


def stored_anew(made: str, change) -> PreTrainedTokenizerFast:
    """The tokenizer after a change of its JSON."""
    stored = json.loads(Path(made, 'tokenizer.json').read_text())
    change(stored)
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>')


def swap(one: str, other: str):
    def change(stored):
        vocab = stored['model']['vocab']
        vocab[one], vocab[other] = vocab[other], vocab[one]

    return change


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (swap('a', 'b'), 'of a sample it has the id'),
        (swap('\u0102', '\u0103'), 'some of its ids stand for other tokens'),  # bytes of no text in the sample
    ],
)
def test_another_tokenizer_of_the_same_size(made, tmp_path, change, words):
    folder = write_manifest(tmp_path, AutoTokenizer.from_pretrained(made))
    other = stored_anew(made, change)
    with pytest.raises(ValueError, match=words) as error:
        check_tokenizer(other, [(str(folder), None)])
    assert f"The data below {tmp_path} was made with another tokenizer, 'one' (" in str(error.value)
    assert 'Use that tokenizer, or prepare the data again' in str(error.value)


def test_other_merges_of_the_same_vocabulary(made, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made)
    folder = write_manifest(tmp_path, tokenizer)
    other = stored_anew(made, lambda stored: stored['model']['merges'].reverse())
    assert other.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match='of a sample'):
        check_tokenizer(other, [(str(folder), None)])


def add_template(stored):
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    tokenizer.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 0)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=30)
    stored.update(json.loads(tokenizer.to_str()))


def test_the_same_tokenizer_stored_in_another_way(made, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made)
    folder = write_manifest(tmp_path, tokenizer)
    for place in (folder, folder.parent, tmp_path):
        check_tokenizer(tokenizer, [(str(place), None)])
    other = stored_anew(made, add_template)
    assert tokenizer_identity(other, None, 1) != tokenizer_identity(tokenizer, None, 1)
    check_tokenizer(other, [(str(folder), None)])
    other.add_tokens(['<pad>', '<tool>'])  # behind all others
    check_tokenizer(other, [(str(folder), None)])


def test_fewer_ids_than_the_data_has(made, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made)
    folder = write_manifest(tmp_path, tokenizer, 'vocab_size', 'name')
    check_tokenizer(tokenizer, [(str(folder), None)])
    folder = write_manifest(tmp_path / 'large', tokenizer, 'vocab_size', 'name', vocab_size=401)
    with pytest.raises(ValueError, match='it has 401 ids, the one here 400'):
        check_tokenizer(tokenizer, [(str(folder), None)])


def test_a_manifest_of_before_has_a_fingerprint_only(made, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made)
    old = ('name', 'vocab_size', 'fingerprint', 'bos_token_id', 'eos_token_id')
    facts = {'fingerprint': tokenizer_identity(tokenizer, None, 1), 'bos_token_id': None, 'eos_token_id': 1}
    folder = write_manifest(tmp_path, tokenizer, *old, **facts)
    check_tokenizer(tokenizer, [(str(folder), None)])
    with pytest.raises(ValueError, match='the fingerprints differ'):
        check_tokenizer(stored_anew(made, swap('\u0102', '\u0103')), [(str(folder), None)])


def test_the_manifest_of_linked_data_lies_where_the_link_leads(made, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made)
    folder = write_manifest(tmp_path / 'there', tokenizer)
    (tmp_path / 'mix' / 'prune').mkdir(parents=True)
    (tmp_path / 'mix' / 'prune' / 'web').symlink_to(folder)
    check_tokenizer(tokenizer, [(str(tmp_path / 'mix' / 'prune' / 'web'), None)])
    other = stored_anew(made, swap('a', 'b'))
    with pytest.raises(ValueError, match='below .*there was made with another tokenizer'):
        check_tokenizer(other, [(str(tmp_path / 'mix' / 'prune' / 'web'), None)])


def test_the_manifest_of_remote_data_counts_too(made, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made)
    remote = write_manifest(tmp_path / 'remote', tokenizer)
    check_tokenizer(tokenizer, [(str(tmp_path / 'cache'), str(remote))])
    with pytest.raises(ValueError, match='of a sample'):
        check_tokenizer(stored_anew(made, swap('a', 'b')), [(str(tmp_path / 'cache'), str(remote))])


@pytest.mark.parametrize(
    'content', ['{"tokenizer": "gpt2"}', '[1]', 'no JSON', '{}', '{"tokenizer": {"vocab_size": "x"}}', '\udcff']
)
@pytest.mark.parametrize('place', ['', 'prune'])
def test_a_manifest_of_another_program_is_passed_over(made, tmp_path, caplog, place, content):
    """One in the data's own folder does not hide that of prepare above it."""
    tokenizer = AutoTokenizer.from_pretrained(made)
    folder = tmp_path / 'prune'
    folder.mkdir()
    path = tmp_path / place / 'manifest.json'
    path.write_bytes(content.encode(errors='surrogateescape'))
    check_tokenizer(tokenizer, [(str(folder), None)])
    assert f'{path} is not a manifest that `llmshearing prepare` wrote' in caplog.text
    if place:
        (tmp_path / 'manifest.json').write_text(json.dumps({'tokenizer': {'name': 'large', 'vocab_size': 401}}))
        with pytest.raises(ValueError, match="another tokenizer, 'large' .*: it has 401 ids, the one here 400"):
            check_tokenizer(tokenizer, [(str(folder), None)])


def other_tiny_tokenizer():
    """One whose words stand for each other's ids."""
    vocab = tiny_tokenizer().get_vocab()
    stored = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    stored['model']['vocab'] = {word: 63 - number for word, number in vocab.items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(stored)), pad_token='t0')


@pytest.fixture
def folders(tmp_path):
    """Domains with a manifest of the tokenizer that they are read with, and the same of another one."""
    write_domains(tmp_path / 'right' / 'prune', {'a': 50, 'b': 30, 'c': 20})
    shutil.copytree(tmp_path / 'right', tmp_path / 'wrong')
    for name, tokenizer in (('right', tiny_tokenizer()), ('wrong', other_tiny_tokenizer())):
        write_manifest(tmp_path / name, tokenizer)
    yield tmp_path / 'right' / 'prune', tmp_path / 'wrong' / 'prune'
    close_loaders()


def test_a_run_compares(folders):
    right, wrong = folders
    dynamic_loader(right, ['a', 'b'])
    for domains in (['a', 'b'], {'a': {'local': str(right / 'a')}, 'b': {'local': str(wrong / 'b')}}):
        with pytest.raises(ValueError, match=f'below {wrong.parent} was made with another tokenizer'):
            dynamic_loader(wrong if isinstance(domains, list) else right, domains)
