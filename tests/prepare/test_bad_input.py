"""What prepare says about input it cannot use, and about results that it must not touch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmshearing.data.fingerprint import check_tokenizer
from llmshearing.prepare import pipeline, publish
from llmshearing.prepare.check import check
from llmshearing.prepare.pipeline import prepare
from llmshearing.prepare.tables import feeding_table
from tests.prepare.prepare_inputs import make_documents, small_pieces, spec, tokenizer, tree, write_jsonl  # noqa: F401


def test_bad_lines_are_counted_and_limited(spec, caplog):
    path = Path(spec['domains']['code'])
    lines = path.read_text().splitlines()
    lines[4:4] = ['{"text": "never clo', '{"no": 1}']
    path.write_text('\n'.join(lines) + '\n{"text": "  "}\n')
    spec['max_bad_lines'] = 1
    with pytest.raises(ValueError) as error:
        prepare(spec, workers=2)
    assert 'more unreadable records than max_bad_lines (1)' in str(error.value)
    assert f'{path}, record 5: Unterminated string' in str(error.value)
    assert f"{path}, record 6: no 'text'" in str(error.value)
    spec['max_bad_lines'] = 2
    entry = prepare(spec, workers=2)['domains']['code']
    assert (entry['bad_lines'], entry['empty'], entry['documents']) == (2, 1, 51)
    assert f'domains.code: skipped {path}, record 5: Unterminated string' in caplog.text


def test_all_that_is_left_out_is_counted(spec, tmp_path, caplog):
    (tmp_path / 'files').mkdir()
    for number, text in enumerate(make_documents(30, 5)):
        (tmp_path / 'files' / f'{number}.txt').write_bytes(text.encode() if number % 3 else text.encode() + b'\xe9')
    spec['domains'] = {'files': str(tmp_path / 'files')}
    prepare(spec, workers=1)
    assert 'domains.files: 10 records were unreadable and left out, 20 were read. The first 5:' in caplog.text


@pytest.mark.parametrize('content', ['', '\n \n', '{"text": ""}\n{"text": " \\n"}\n'])
def test_empty_domain(spec, tmp_path, content):
    (tmp_path / 'none.jsonl').write_text(content)
    spec['domains']['none'] = str(tmp_path / 'none.jsonl')
    with pytest.raises(ValueError, match='domains.none has no document with text .*leave the domain out'):
        prepare(spec, workers=1)


def test_a_domain_without_text_says_why(spec, tmp_path):
    (tmp_path / 'none.jsonl').write_text('{"text": ["a", "b"]}\n')
    spec['domains']['none'] = str(tmp_path / 'none.jsonl')
    with pytest.raises(ValueError, match='1 unreadable; the first, .*none.jsonl, record 1: the text is a list of 2'):
        prepare(spec, workers=1)


WRAP = r"write each as a record, for example with jq -c '\{text: \(\.\[\]\? // \.\)\}' FILE > FILE.jsonl"
LATIN = r'it is not UTF-8 \(.*\); convert it, with iconv -f latin1 -t utf-8 for example'


@pytest.mark.parametrize(
    'name, content, told',
    [
        ('a.json', json.dumps(['one', 'two']).encode(), f'a.json is a list of strings, not of records; {WRAP}'),
        ('a.jsonl', json.dumps(['one', 'two'], indent=1).encode(), f'a.jsonl is a list of strings, .*{WRAP}'),
        ('folder/a.json', b'["one", "two"]', f'folder/a.json is a list of strings, .*{WRAP}'),
        ('a.jsonl', b'"one"\n"two"\n', f'a.jsonl, record 1: expected a JSON object, got str; {WRAP}'),
        ('a.jsonl', b'{"text": "\xdcber"}\n', f'a.jsonl, record 1: {LATIN}'),
        ('a.txt', b'\xdcber', f'a.txt, record 1: {LATIN}'),
    ],
)
def test_text_that_is_not_as_it_should_be_is_told_the_way_out(spec, tmp_path, name, content, told):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    spec['domains']['odd'] = str(tmp_path / name.split('/')[0])
    with pytest.raises(ValueError, match=told):
        prepare(spec, workers=1)


def test_the_ways_out_work(spec, tmp_path):
    """What the last test's messages advise; where jq is not installed, what it would write."""
    texts = make_documents(40, 8)
    (tmp_path / 'latin.txt').write_bytes(
        '\n'.join(f'\xdcber {text.encode("ascii", "ignore")}' for text in texts).encode('latin-1')
    )
    with open(tmp_path / 'out.txt', 'wb') as file:
        subprocess.run(['iconv', '-f', 'latin1', '-t', 'utf-8', tmp_path / 'latin.txt'], stdout=file, check=True)
    spec['domains'] = {'latin': {'path': str(tmp_path / 'out.txt'), 'separator': '\n'}}
    (tmp_path / 'a.json').write_text(json.dumps(texts))
    if shutil.which('jq'):
        with open(tmp_path / 'a.jsonl', 'wb') as file:
            subprocess.run(['jq', '-c', '{text: (.[]? // .)}', tmp_path / 'a.json'], stdout=file, check=True)
    else:
        (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    spec['domains']['list'] = str(tmp_path / 'a.jsonl')
    assert [entry['documents'] for entry in prepare(spec, workers=1)['domains'].values()] == [40, 40]


def test_domain_of_duplicates_only(spec, tmp_path):
    spec['domains']['copy'] = write_jsonl(tmp_path / 'copy.jsonl', make_documents(50, 2))
    with pytest.raises(
        ValueError, match='domains.copy: each of its 50 documents is a duplicate of one in an earlier domain'
    ):
        prepare(spec, workers=1)


def test_split_without_a_sample(spec, tmp_path):
    spec['domains']['one'] = write_jsonl(tmp_path / 'one.jsonl', make_documents(1, 9))
    with pytest.raises(ValueError, match=r"domains.one: split '\w+' gets 0 tokens .*tokens.\w+: 0 to leave it out"):
        prepare(spec, workers=1)
    spec['domains']['one'] = {'path': spec['domains']['one'], 'tokens': {'eval': 0, 'prune': 0}}
    assert list(prepare(spec, workers=1)['domains']['one']['splits']) == ['continue']


def test_a_split_without_a_sample_is_told_before_anything_is_tokenized(spec, tmp_path, monkeypatch):
    spec['domains']['one'] = write_jsonl(tmp_path / 'one.jsonl', ['a few words', 'and more', 'of them'] * 2)
    monkeypatch.setattr(pipeline, 'tokenize', None)
    with pytest.raises(ValueError, match=r"domains.one: split '\w+' gets \d+ tokens"):
        prepare(spec, workers=1)


def test_what_an_unfinished_run_left_gives_way_to_the_next_one(spec, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, 'publish_manifest', stop)
        prepare(spec, workers=1)
    assert (Path(spec['out']) / 'continue').exists()
    prepare({**spec, 'seed': 4}, workers=1)  # another request, as after an error that says what to change
    check(Path(spec['out']))


def test_a_failed_overwrite_leaves_what_was_there(spec):
    prepare(spec, workers=1)
    before = tree(Path(spec['out']))
    with pytest.raises(ValueError, match='less than one sample'):
        prepare({**spec, 'max_seq_len': 100_000}, workers=1, overwrite=True)
    shutil.rmtree(Path(spec['out']) / '.prepare')
    assert tree(Path(spec['out'])) == before


def test_overwriting_leaves_nothing_of_the_earlier_data_set(spec):
    prepare(spec, workers=1)
    fewer = {**spec, 'domains': {'code': spec['domains']['code']}}
    prepare(fewer, workers=1, overwrite=True)
    assert {path.parent.name for path in Path(spec['out']).glob('*/*/index.json')} == {'code'}


def test_a_folder_that_the_manifest_does_not_list_is_found(spec, caplog):
    prepare(spec, workers=1)
    out = Path(spec['out'])
    shutil.copytree(out / 'continue' / 'code', out / 'continue' / 'older')
    with pytest.raises(ValueError, match='manifest.json does not list .*continue/older: an earlier data set left it'):
        check(out)
    check_tokenizer(AutoTokenizer.from_pretrained(spec['tokenizer']), [(str(out / 'continue' / 'older'), None)])
    assert 'which does not list it: which tokenizer made it is not known' in caplog.text


def test_two_that_prepare_into_one_place_are_told(spec, tmp_path, monkeypatch):
    def meanwhile(plan, text):
        (Path(spec['out']) / 'manifest.json').write_text('{}')
        publish.publish_manifest(plan, text)

    monkeypatch.setattr(pipeline, 'publish_manifest', meanwhile)
    with pytest.raises(ValueError, match='another prepare has finished in .* meanwhile'):
        prepare({**spec, 'work': str(tmp_path / 'work')}, workers=1)


def test_workers_are_counted_from_one(spec):
    with pytest.raises(ValueError, match='workers is 0; expected at least 1'):
        prepare(spec, workers=0)


def test_other_results_are_not_touched(spec, tmp_path):
    prepare(spec, workers=1)
    before = tree(Path(spec['out']))
    other = {**spec, 'seed': 4}
    with pytest.raises(ValueError, match='holds another data set .*--overwrite'):
        prepare(other, workers=1)
    assert tree(Path(spec['out'])) == before
    prepare(other, workers=1, overwrite=True)
    prepare({**other, 'out': str(tmp_path / 'fresh')}, workers=1)
    assert tree(Path(spec['out'])) == tree(tmp_path / 'fresh') != before
    stray = Path(spec['out']).parent / 'stray' / 'eval' / 'web'
    stray.mkdir(parents=True)
    with pytest.raises(ValueError, match='eval/web exists and is not of this run'):
        prepare({**spec, 'out': str(stray.parents[1])}, workers=1)
    assert list(stray.parents[1].iterdir()) == [stray.parent]


def test_changed_input_is_another_data_set(spec):
    prepare(spec, workers=1)
    with open(spec['domains']['code'], 'a') as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(ValueError, match='holds another data set'):
        prepare(spec, workers=1)


def test_input_that_changes_during_the_run(spec, monkeypatch):
    def mark(*args):
        path = Path(spec['domains']['code'])
        path.write_text(path.read_text().replace('alpha', 'ALPHA'))
        return mark_duplicates(*args)

    mark_duplicates = pipeline.mark_duplicates
    monkeypatch.setattr(pipeline, 'mark_duplicates', mark)
    with pytest.raises(ValueError, match='code.jsonl changed while it was being read'):
        prepare(spec, workers=1)


def test_what_is_written_is_never_read_as_text(spec, tmp_path):
    """A folder that is read whole must not hold ``out``; a glob may leave it out."""
    (tmp_path / 'pages').mkdir()
    for number, text in enumerate(make_documents(30, 5)):
        (tmp_path / 'pages' / f'{number}.txt').write_text(text)
    spec['domains'] = {'pages': str(tmp_path / 'pages')}
    spec['out'] = str(tmp_path / 'pages' / 'mds')
    with pytest.raises(ValueError, match='domains.pages: .* lie in one another'):
        prepare(spec, workers=1)
    assert not (tmp_path / 'pages' / 'mds' / 'manifest.json').exists()
    spec['domains'] = {'pages': {'path': str(tmp_path / 'pages'), 'glob': '*.txt'}}
    first = prepare(spec, workers=1)
    assert prepare(spec, workers=1) == first
    spec['domains'] = {'pages': {'path': str(tmp_path / 'pages'), 'glob': '**/*'}}
    with pytest.raises(ValueError, match='domains.pages: .* holds data sets, .*leave them out by a glob'):
        prepare(spec, workers=1, overwrite=True)
    assert (tmp_path / 'pages' / 'mds' / 'manifest.json').exists()


def test_text_that_spells_special_tokens_is_counted_and_told_once(spec, caplog):
    lists = {name: make_documents(40, seed) for seed, name in enumerate(('web', 'code'), 20)}
    plain = prepare(with_texts(spec, lists, 'plain'), workers=2)
    assert all(entry['special_tokens'] == {'documents': 0, 'example': None} for entry in plain['domains'].values())
    assert 'special tokens' not in caplog.text + feeding_table(plain, 4)
    lists['web'][7:7] = ['ends </s> here', 'begins <s> twice <s>']
    lists['web'] += ['</s>', '< /s> is none, nor is <S>']
    for workers in (1, 3):
        caplog.clear()
        manifest = prepare(with_texts(spec, lists, f'spelled-{workers}'), workers=workers)
        path = manifest['domains']['web']['path'][0]
        assert manifest['domains']['web']['special_tokens'] == {'documents': 3, 'example': f'{path}, record 8: </s>'}
        assert manifest['domains']['code']['special_tokens'] == {'documents': 0, 'example': None}
        (said,) = [message for message in caplog.messages if 'special tokens' in message]
        assert 'domains.web: 3 of 44 documents spell special tokens' in said and f'{path}, record 8: </s>' in said
        assert feeding_table(manifest, 4).splitlines()[-1] == 'documents that spell special tokens: web 3'
    # What the message advises.
    lists['web'] = [re.sub('<(/?s)>', r'< \1>', text) for text in lists['web']]
    assert prepare(with_texts(spec, lists, 'apart'), workers=1)['domains']['web']['special_tokens']['documents'] == 0


def with_texts(spec, lists, name):
    """The spec for other documents by domain, with all of them in one split, in another folder."""
    folder = Path(spec['out']).parent
    domains = {domain: write_jsonl(folder / name / f'{domain}.jsonl', texts) for domain, texts in lists.items()}
    return {**spec, 'domains': domains, 'out': str(folder / name / 'out'), 'splits': {'continue': {}}}
