"""The command line, the tables it shows, the check of finished folders, and the worked example of the README."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from streaming import MDSWriter

from llmshearing.cli import main
from llmshearing.prepare import pipeline
from llmshearing.prepare.check import check
from llmshearing.prepare.pipeline import prepare
from llmshearing.prepare.tables import feeding_table
from tests.interruptions import stop_after
from tests.prepare.prepare_inputs import small_pieces, spec, tokenizer, tree  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture
def yaml(spec, tmp_path):
    path = tmp_path / 'spec.yaml'
    OmegaConf.save({'variables': {'length': 64}, **spec, 'max_seq_len': '${variables.length}'}, path)
    return str(path)


def test_command(spec, yaml, tmp_path, capsys):
    out = tmp_path / 'elsewhere'
    code = main(['prepare', yaml, '--out', str(out), 'variables.length=16', '--workers', '1', '--batch-size', '4'])
    assert code == 0
    manifest = json.loads((out / 'manifest.json').read_text())
    assert manifest['max_seq_len'] == 16 and not Path(spec['out']).exists()
    shown = capsys.readouterr().out
    assert shown == feeding_table(manifest, 4) + '\n'
    assert main(['prepare', yaml, '--out', str(out), 'variables.length=16', '--quiet']) == 0
    assert capsys.readouterr().out == ''


def test_table():
    entry = {'documents': 5, 'tokens': 1024, 'samples': 16, 'budget_tokens': 1000, 'budget_met': True}
    short = {'documents': 3000, 'tokens': 64, 'samples': 1, 'budget_tokens': 6400, 'budget_met': False}
    free = {'documents': 7, 'tokens': 320, 'samples': 5, 'budget_tokens': None, 'budget_met': True}
    manifest = {
        'splits': {
            'eval': {'documents': 3005, 'tokens': 1088, 'samples': 17},
            'continue': {'documents': 7, 'tokens': 320, 'samples': 5},
        },
        'domains': {'a': {'splits': {'eval': entry}}, 'b': {'splits': {'eval': short, 'continue': free}}},
    }
    assert feeding_table(manifest, 4).splitlines() == [
        'split     domain  documents  tokens       budget  sequences  steps of 4',
        'eval      a               5   1,024          met         16           4',
        'eval      b           3,000      64  1% of 6,400          1           0',
        'eval      all         3,005   1,088                      17           4',
        'continue  b               7     320            -          5           1',
        'continue  all             7     320                       5           1',
    ]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['none.yaml'], 'none.yaml does not exist; expected a YAML file'),
        ([], 'expected the name of a YAML file, or --check FOLDER'),
        (['{yaml}', 'max_seqlen=3'], "the spec: unknown key 'max_seqlen'. Did you mean 'max_seq_len'?"),
        (['{yaml}', '64'], "'64' is not of the form key=value"),
        (['{yaml}', '--batch-size', '0'], '--batch-size is 0; expected at least 1'),
        (['{yaml}', 'domains.web=none.jsonl'], "domains.web: 'none.jsonl' does not exist"),
        (['--check', 'nowhere'], 'nowhere has no index.json'),
        (['--check', 'nowhere', '--overwrite'], '--check FOLDER looks at what is there and prepares nothing'),
        (['{yaml}', '--vocab-size', '3'], '--vocab-size belongs to --check FOLDER'),
        (['list.yaml'], "list.yaml: it holds ['a'], expected a mapping from keys to values"),
        (['broken.yaml'], 'broken.yaml: while parsing a flow sequence'),
        (['binary.yaml'], "binary.yaml: 'utf-8' codec can't decode"),
        (['refers.yaml'], "refers.yaml: Interpolation key 'no.such' not found; ${NAME} is another key of the file"),
        (['{yaml}', 'domains=[1]'], 'spec.yaml, with domains=[1]: Cannot merge incompatible'),
        (['{yaml}', 'domains=[1'], 'spec.yaml, with domains=[1: while parsing'),
        (['{yaml}', 'max_seq_len=.inf'], 'max_seq_len: expected a whole number of at least 2, got inf'),
        (['{yaml}', 'shard_size=.inf'], 'shard_size is inf; expected bytes'),
        (
            ['{yaml}', '--out', 'list.yaml'],
            'list.yaml is, or lies below, a file; expected a folder: change out or work',
        ),
        (['{yaml}', '--out', 'list.yaml/below'], 'list.yaml/below is, or lies below, a file'),
        (['{yaml}', 'out=[o,list.yaml]'], 'list.yaml cannot be written to'),
        (['{yaml}', '--out', 'hf://datasets/a/b/c'], "begins with 'hf', which Streaming cannot write to"),
        (
            ['{yaml}', '--out', 'other'],
            'other holds another data set (other/manifest.json is not a manifest that prepare',
        ),
        (['--check', 'other'], 'other/manifest.json is not a manifest that prepare wrote (it has no key)'),
    ],
)
def test_wrong_usage_is_one_line(yaml, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ('list.yaml', b'[a]'),
        ('broken.yaml', b'a: [1'),
        ('binary.yaml', b'\xff\xfe\0'),
        ('refers.yaml', b'tokenizer: ${no.such}'),
    ):
        Path(name).write_bytes(content)
    _mds(Path('other/eval/text'), [{'text': 'x'}], {'text': 'str'})
    Path('other/manifest.json').write_text('{"tokenizer": "gpt2"}')
    assert main(['prepare', *(a.format(yaml=yaml) for a in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith('llmshearing prepare: ') and error.count('\n') == 1 and words in error


def test_full_disk_and_interruption_are_one_line(yaml, capsys, monkeypatch):
    for error, code, words in (
        (OSError(28, 'No space left on device'), 1, 'No space left'),
        (KeyboardInterrupt(), 130, 'the same command continues where it stopped'),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr('llmshearing.commands.prepare.prepare', fail)
        assert main(['prepare', yaml]) == code
        shown = capsys.readouterr().err
        assert shown.count('\n') == 1 and words in shown


# ---------------------------------------------------------------------------------------------- the check


def test_check_of_a_result(spec, capsys):
    manifest = prepare(spec, workers=1)
    found = check(Path(spec['out']), vocab_size=400)
    assert {name: facts['samples'] for name, facts in found.items()} == {
        f'{split}/{domain}': entry['samples']
        for domain, e in manifest['domains'].items()
        for split, entry in e['splits'].items()
    }
    largest = max(facts['largest_id'] for facts in found.values())
    assert main(['prepare', '--check', spec['out'], '--vocab-size', str(largest + 1)]) == 0
    assert f'tokens {manifest["encoding"]}  size, sha1' in capsys.readouterr().out
    with pytest.raises(ValueError, match=f'has the token id {largest}, outside a vocabulary of {largest}'):
        check(Path(spec['out']), largest)
    (Path(spec['out']) / 'prune' / 'web').rename(Path(spec['out']).parent / 'away')
    with pytest.raises(ValueError, match='prune/web has no samples, the manifest says'):
        check(Path(spec['out']))


@pytest.mark.parametrize('compression', [None, 'zstd:3'])
def test_check_of_broken_shards(spec, compression):
    prepare({**spec, 'compression': compression}, workers=1)
    folder = Path(spec['out']) / 'continue' / 'code'
    shard = next(folder.glob('shard*'))
    whole = shard.read_bytes()
    for data, words in ((whole[:-1], 'it was cut or changed'), (whole[:-1] + bytes([whole[-1] ^ 1]), 'sha1 differs')):
        shard.write_bytes(data)
        with pytest.raises(ValueError, match=f'{shard.name} .*{words}'):
            check(folder)
    shard.unlink()
    with pytest.raises(ValueError, match='has 0 bytes, its index says .* missing'):
        check(folder)
    (folder / 'index.json').write_text('{"shards": ')
    with pytest.raises(ValueError, match='index.json is not an index of MDS shards'):
        check(folder)


def test_check_of_an_unfinished_result(spec, monkeypatch):
    stop_after(monkeypatch, pipeline, 'publish_manifest', 0, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, workers=1)
    with pytest.raises(ValueError, match='is unfinished: prepare was interrupted; run it again'):
        check(Path(spec['out']))


@pytest.mark.parametrize('compression', ['zstd', 'zstd:3', 'gz'])
def test_check_reads_compressed_ids(spec, compression):
    spec['compression'] = compression
    prepare({**spec, 'out': spec['out'] + '-plain', 'compression': None}, workers=1)
    prepare(spec, workers=1)
    plain, found = check(Path(spec['out'] + '-plain'), 400), check(Path(spec['out']), 400)
    ids = {name: facts['largest_id'] for name, facts in found.items()}
    assert ids == {name: facts['largest_id'] for name, facts in plain.items()} and None not in ids.values()
    with pytest.raises(ValueError, match=f'has the token id {max(ids.values())}, outside a vocabulary'):
        check(Path(spec['out']), max(ids.values()))


def test_check_of_a_damaged_archive(spec):
    prepare({**spec, 'compression': 'zstd:3', 'hashes': []}, workers=1)
    folder = Path(spec['out']) / 'continue' / 'code'
    shard = next(folder.glob('shard*'))
    shard.write_bytes(b'x' * shard.stat().st_size)
    with pytest.raises(ValueError, match=f'{shard.name} cannot be decompressed'):
        check(folder, 400)


def _mds(folder: Path, samples: list[dict], columns: dict[str, str]) -> str:
    with MDSWriter(columns=columns, out=str(folder)) as writer:
        for sample in samples:
            writer.write(sample)
    return str(folder)


IDS = np.array([[3, 1, 41], [7, 0, 5]])


@pytest.mark.parametrize(
    ('columns', 'cast'),
    [
        ({'tokens': 'bytes'}, lambda ids: ids.astype(np.int64).tobytes()),  # as llm-foundry's converters wrote them
        ({'tokens': 'ndarray:int32'}, lambda ids: ids.astype(np.int32)),
        ({'tokens': 'ndarray:int32:3'}, lambda ids: ids.astype(np.int32)),
        ({'tokens': 'ndarray'}, lambda ids: ids.astype(np.uint16)),
        ({'meta': 'str', 'tokens': 'ndarray:uint16:3'}, lambda ids: ids.astype(np.uint16)),
    ],
)
def test_check_reads_ids_of_other_converters(tmp_path, capsys, columns, cast):
    def made(name, ids):
        rows = [{'meta': 'about', 'tokens': cast(row)} for row in ids]
        return _mds(tmp_path / name, [{column: row[column] for column in columns} for row in rows], columns)

    good = made('good', IDS)
    assert check(Path(good))['.']['largest_id'] is None
    assert check(Path(good), vocab_size=42)['.']['largest_id'] == 41
    assert main(['prepare', '--check', good, '--vocab-size', '41']) == 1
    assert 'shard.00000.mds has the token id 41, outside a vocabulary of 41' in capsys.readouterr().err
    if 'int32' in columns['tokens']:
        negative = Path(made('negative', IDS - 42))
        for vocab_size in (42, None):  # without one, the first ids of each shard are looked at
            with pytest.raises(ValueError, match=r'has the token id -\d+, outside'):
                check(negative, vocab_size)


@pytest.mark.parametrize(
    ('columns', 'sample', 'words'),
    [
        (
            {'text': 'str'},
            {'text': 'a text'},
            "no token ids to compare with --vocab-size: its columns are {'text': 'str'}",
        ),
        ({'tokens': 'str'}, {'tokens': '1 2'}, 'no token ids to compare'),
        ({'tokens': 'bytes'}, {'tokens': b'123'}, 'its token ids cannot be read'),
        (
            {'tokens': 'bytes'},
            {'tokens': np.arange(4, dtype=np.int32).tobytes()},
            r'has the token id \d{10,}, outside a vocabulary of 100 .bytes, read as int64.',
        ),
        ({'tokens': 'ndarray:float32:2'}, {'tokens': np.ones(2, np.float32)}, 'tokens are float32, expected whole'),
        ({'tokens': 'bytes', 'more': 'pkl'}, {'tokens': bytes(8), 'more': 1}, 'cannot be read .*unsafe type'),
    ],
)
def test_ids_that_cannot_be_read_are_an_error(tmp_path, capsys, columns, sample, words):
    folder = _mds(tmp_path / 'made', [sample] * 2, columns)
    is_seen_anyway = 'float' in columns.get('tokens', '')
    assert main(['prepare', '--check', folder]) == is_seen_anyway
    assert ('tokens are float32, expected whole' in capsys.readouterr().err) == is_seen_anyway
    assert main(['prepare', '--check', folder, '--vocab-size', '100']) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and re.search(words, error)


@pytest.mark.parametrize(
    'content',
    [
        '[]',
        '{}',
        '{"shards": [{}]}',
        '{"shards": [{"format": "jsonl"}]}',
        '{"shards": [{"format": "mds", "version": 2}]}',
        '{"shards": 3}',
    ],
)
def test_check_of_an_index_of_something_else(tmp_path, content):
    (tmp_path / 'index.json').write_text(content)
    with pytest.raises(ValueError, match='index.json is not an index of MDS shards'):
        check(tmp_path)


# ---------------------------------------------------------------------------------------------- the README


def test_worked_example_of_the_readme(tmp_path, monkeypatch, capsys):
    """Runs its commands as they stand, but for less text, and compares the shape of the table."""
    text = (ROOT / 'data_prep' / 'README.md').read_text(encoding='utf-8')
    example = text[text.index('## Worked example') :]
    commands = re.search(r'```bash\n(.*?)```', example, re.DOTALL)[1].splitlines()
    table = re.search(r'```text\n(.*?)```', example, re.DOTALL)[1].splitlines()
    monkeypatch.chdir(tmp_path)
    for folder in ('data_prep', 'yamls'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    assert [command.split()[0] for command in commands] == ['python', 'llmshearing', 'llmshearing']
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == 'python':
            monkeypatch.setattr(sys, 'argv', [*arguments, '1e6'])
            runpy.run_path(arguments[0], run_name='__main__')
        else:
            assert main([*arguments, *(['--workers', '1'] if '--batch-size' in arguments else [])]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == table[0].split()
    assert [line.split()[:2] for line in shown[1 : len(table)]] == [line.split()[:2] for line in table[1:]]
    assert sorted(path.name for path in (tmp_path / 'example' / 'mds').iterdir()) == [
        'continue',
        'eval',
        'manifest.json',
        'prune',
    ]


def test_every_key_is_in_the_readme_and_the_example():
    from dataclasses import fields

    from llmshearing.prepare.spec import Domain, Spec, Split

    for path in (ROOT / 'data_prep' / 'README.md', ROOT / 'yamls' / 'data' / 'example.yaml'):
        text = path.read_text(encoding='utf-8')
        for kind in (Spec, Domain, Split):
            for field in fields(kind):
                if field.name not in ('name', 'remote', 'fraction'):
                    assert field.name in text, (path.name, field.name)


def test_script_is_the_command(spec, yaml, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['prepare.py', yaml, '--quiet', '--workers', '1'])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / 'data_prep' / 'prepare.py'), run_name='__main__')
    assert done.value.code == 0 and len(tree(Path(spec['out']))) == 13
