"""``llmshearing rotate`` from a source folder to a rotated one: exact, resumable, atomic, and what it refuses."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing.commands.rotate import main
from llmshearing.rotation import check
from llmshearing.rotation import rotate_source as stages
from llmshearing.rotation import settings as rotation_settings
from llmshearing.rotation.check import try_common_gain
from llmshearing.rotation.corpus import Corpus, read_corpus
from llmshearing.rotation.exact import exact_logits
from llmshearing.rotation.settings import RotationSettings
from llmshearing.rotation.source_folder import SourceFolder
from tests.interruptions import Stop, stop_after
from tests.models.tiny import VARIANTS, tiny_model
from tests.prepare.prepare_inputs import parquet_of
from tests.rotation.models import IDS, files, make_text, save_source, source_model
from tests.tiny_run import tiny_tokenizer

WORDS = ' '.join(f'w{i % 90}' for i in range(300))
RECORD = json.dumps({'text': WORDS}).encode()
SIZES = ['--tokens', '600', '--held-out', '100', '--seq-len', '20', '--batch-tokens', '40']


def make_source(folder: Path, variant: str = 'llama', spread: float = 1.5, **overrides) -> Path:
    return save_source(folder, source_model(variant, torch.float32, spread, **overrides), tiny_tokenizer())


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('rotate')
    make_source(folder / 'source')
    make_source(folder / 'tied', 'llama-tied', spread=0.01)
    make_text(folder / 'text.jsonl')
    return folder


def run(place: Path, source: str, output: str, *options: str) -> Path:
    paths = [str(place / source), '--data', str(place / 'text.jsonl'), '--output', str(place / output)]
    assert main([*paths, *SIZES, *options]) == 0
    return place / output


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)(IDS).logits


def test_a_rotated_folder_is_the_source_in_another_basis(place, capsys):
    folder = run(place, 'source', 'rotated', '--keep', '32')
    torch.testing.assert_close(logits(folder), logits(place / 'source'), rtol=0, atol=1e-4)
    rotated, source = load_file(folder / 'model.safetensors'), load_file(place / 'source' / 'model.safetensors')
    assert {name: tensor.shape for name, tensor in rotated.items()} == {n: t.shape for n, t in source.items()}
    assert not torch.allclose(rotated['model.embed_tokens.weight'], source['model.embed_tokens.weight'], atol=1e-2)
    for name in ('tokenizer.json', 'generation_config.json', 'LICENSE'):
        assert (folder / name).read_bytes() == (place / 'source' / name).read_bytes()
    AutoTokenizer.from_pretrained(folder)
    own, derived = (json.loads((f / 'config.json').read_text()) for f in (place / 'source', folder))
    assert {key for key in own if own[key] != derived[key]} <= {'tie_word_embeddings'}
    assert derived.keys() - own.keys() <= {'torch_dtype', 'rope_theta', 'tie_word_embeddings'}
    assert {'torch_dtype', 'rope_theta'} <= derived.keys()  # by which other programs know them
    card = (folder / 'README.md').read_text()
    assert 'license: mit' in card and 'base_model: ' in card and 'energy_kept.svg' in card
    assert (folder / 'energy_kept.svg').read_text().startswith('<svg xmlns')
    record = json.loads((folder / 'rotation.json').read_text())
    assert record['settings']['keep'] == 32 and record['fixed_axes'] == [] and not record['tied']
    assert record['largest_logit_difference'] < 1e-4 and record['checked_in'] == 'float64'
    assert abs(record['loss']['rotated'] - record['loss']['source']) < 1e-5
    assert abs(sum(record['energy']) - 1) < 1e-9 and record['energy'] == sorted(record['energy'], reverse=True)
    assert all(kept[-1] == 1 for kept in record['energy_kept']['norms'].values())
    out = capsys.readouterr().out
    assert '| 48 | 100.0 % | 100.0 % | 100.0 % |' in out and 'checked in float64' in out
    assert not list(place.glob('.rotated*'))


def test_a_tied_source_stays_tied(place):
    folder = run(place, 'tied', 'tied-rotated', '--fixed-axes', '5')
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings and 'lm_head.weight' not in load_file(folder / 'model.safetensors')
    record = json.loads((folder / 'rotation.json').read_text())
    assert len(record['fixed_axes']) == 5 and record['settings']['fixed_axes'] == 5
    embedding = model.model.embed_tokens.weight.detach()
    own = AutoModelForCausalLM.from_pretrained(place / 'tied').model.embed_tokens.weight.detach()
    assert torch.equal(embedding[:, record['fixed_axes_at']], own[:, record['fixed_axes']])
    assert record['loss']['rotated'] - record['loss']['source'] < 0.01
    torch.testing.assert_close(logits(folder), logits(place / 'tied'), rtol=0, atol=0.1)


def test_a_tied_source_in_float64_is_as_exact_as_its_files(place, monkeypatch):
    source = save_source(place / 'double', source_model('llama-tied'), tiny_tokenizer())
    folder = run(place, 'double', 'double-rotated', '--fixed-axes', '48')
    models = [AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float64) for path in (source, folder)]
    torch.testing.assert_close(*(exact_logits(model, IDS) for model in models), rtol=0, atol=1e-9)

    def rounded(*arguments):
        fixed, gain, loss = try_common_gain(*arguments)
        return fixed, gain.float().double(), loss

    monkeypatch.setattr(stages, 'try_common_gain', rounded)
    with pytest.raises(ValueError, match='logits differ from the source'):
        run(place, 'double', 'never', '--fixed-axes', '48')


def test_a_small_tied_source_is_rotated_unasked_and_one_with_every_axis_fixed_says_that_it_is_not(place, capsys):
    record = json.loads((run(place, 'tied', 'tied-unasked') / 'rotation.json').read_text())
    assert len(record['fixed_axes']) == 12
    assert 'nothing is rotated' not in capsys.readouterr().out
    run(place, 'tied', 'tied-48', '--fixed-axes', '48')
    assert (
        'nothing is rotated, dimensions only change places; fewer --fixed-axes, or --untie' in capsys.readouterr().out
    )


def test_untied_on_request(place):
    folder = run(place, 'tied', 'untied', '--untie')
    assert 'lm_head.weight' in load_file(folder / 'model.safetensors')
    assert json.loads((folder / 'config.json').read_text())['tie_word_embeddings'] is False
    torch.testing.assert_close(logits(folder), logits(place / 'tied'), rtol=0, atol=1e-4)


@pytest.mark.skipif('lfm2' not in VARIANTS, reason='transformers 4 has no such model')
def test_untied_where_the_config_has_the_key_of_the_first_lfm2(place):
    make_source(place / 'lfm2', 'lfm2', spread=0.01)
    path = place / 'lfm2' / 'config.json'
    settings = json.loads(path.read_text())
    settings['tie_embedding'] = settings.pop('tie_word_embeddings')
    path.write_text(json.dumps(settings))
    folder = run(place, 'lfm2', 'lfm2-untied', '--untie')
    assert not AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings
    torch.testing.assert_close(logits(folder), logits(place / 'lfm2'), rtol=0, atol=1e-4)


def test_a_common_gain_that_costs_too_much_is_refused(place, monkeypatch):
    make_source(place / 'odd', 'llama-tied', spread=4.0)
    monkeypatch.setattr(check, 'LARGEST_RAISE', -1.0)  # to a random model no gain is better than another
    with pytest.raises(ValueError, match='3 fixed axes.*allowed is -1.0.*--fixed-axes 16; or --untie'):
        run(place, 'odd', 'odd-rotated', '--fixed-axes', '3')
    assert not (place / 'odd-rotated').exists()


def test_as_many_axes_are_fixed_as_it_takes(place, monkeypatch):
    monkeypatch.setattr(rotation_settings, 'DEFAULT_FIXED_AXES', 6)
    losses = iter([9.0, 9.0, 0.0])  # with 6, 12 and 24 axes fixed
    monkeypatch.setattr(check, 'held_out_loss', lambda model, batches: next(losses))
    record = json.loads((run(place, 'tied', 'tied-24') / 'rotation.json').read_text())
    assert len(record['fixed_axes']) == 24 and record['settings']['fixed_axes'] == 6


def test_learned_is_exact_too_and_names_its_steps(place):
    folder = run(place, 'source', 'learned', '--keep', '32', '--learn', '3ba')
    torch.testing.assert_close(logits(folder), logits(place / 'source'), rtol=0, atol=1e-4)
    learned = json.loads((folder / 'rotation.json').read_text())['learned']
    assert learned['steps'] == 3 and learned['loss_when_cut']['learned'] < learned['loss_when_cut']['principal']


def test_principal_directions_are_kept_where_learning_makes_the_cut_worse(place, monkeypatch, capsys):
    plain = run(place, 'source', 'principal', '--keep', '32')
    monkeypatch.setattr(stages, 'step_size', lambda step, steps: -5.0)  # up the loss
    folder = run(place, 'source', 'worse', '--keep', '32', '--learn', '3ba')
    assert 'principal directions, which are kept' in capsys.readouterr().out
    assert json.loads((folder / 'rotation.json').read_text())['learned'] is None
    one, other = (load_file(path / 'model.safetensors') for path in (plain, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def count_batches(monkeypatch) -> list[torch.Tensor]:
    """A list of the batches that are looked at."""
    seen, stream_moments = [], stages.stream_moments
    monkeypatch.setattr(
        stages, 'stream_moments', lambda model, batches: seen.extend(batches) or stream_moments(model, batches)
    )
    return seen


@pytest.mark.parametrize('stage', ['moments', 'subspace', 'tensors', 'check'])
def test_killed_and_started_again_gives_the_same_bytes(place, monkeypatch, stage):
    options = ('--keep', '32', '--learn', '4ba')
    monkeypatch.setattr(stages, 'SAVE_EVERY', 2)
    whole = place / 'whole'
    if not whole.exists():
        run(place, 'source', 'whole', *options)
    name, after = {
        'moments': ('stream_moments', 5),
        'subspace': ('cut_loss', 3),
        'tensors': ('copy_companions', 0),
        'check': ('check_logits', 0),
    }[stage]
    output = place / 'again' / 'whole'
    shutil.rmtree(output.parent, ignore_errors=True)
    output.parent.mkdir()
    with monkeypatch.context() as patch:
        stop_after(patch, stages, name, after, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(place, 'source', 'again/whole', *options)
    assert not output.exists() and (output.parent / '.whole.rotation').exists()
    seen = count_batches(monkeypatch)
    run(place, 'source', 'again/whole', *options)
    assert len(seen) < 15  # of 15 batches, some were saved
    assert files(output) == files(whole)
    assert [path.name for path in output.parent.iterdir()] == ['whole']


def test_moments_of_other_settings_are_not_used(place, monkeypatch):
    seen = count_batches(monkeypatch)
    stop_after(monkeypatch, stages, 'check_logits', 0)
    for options in ([], [], ['--dtype', 'bfloat16']):
        with pytest.raises(Stop):
            run(place, 'source', 'other', *options)
    assert len(seen) == 30  # the second time none


def test_bfloat16_on_request(place):
    folder = run(place, 'source', 'half', '--dtype', 'bfloat16')
    assert {t.dtype for t in load_file(folder / 'model.safetensors').values()} == {torch.bfloat16}
    written = json.loads((folder / 'config.json').read_text())
    assert written.get('dtype', written.get('torch_dtype')) == 'bfloat16'
    record = json.loads((folder / 'rotation.json').read_text())
    assert 1e-4 < record['largest_logit_difference'] < 0.1


def test_nan_in_the_source_is_refused_by_name(place):
    broken = place / 'broken'
    shutil.copytree(place / 'source', broken)
    tensors = load_file(broken / 'model.safetensors')
    tensors['model.layers.1.self_attn.o_proj.weight'][0, 0] = float('inf')
    save_file(tensors, broken / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(ValueError, match=r'model\.layers\.1\.self_attn\.o_proj\.weight holds NaN or infinity'):
        run(place, 'broken', 'never')


@pytest.mark.parametrize('variant', ['gemma2', 'gpt_neox'])
def test_another_family_is_refused(place, variant):
    tiny_model(variant).save_pretrained(place / variant)
    with pytest.raises(ValueError, match=f'{variant} cannot be rotated'):
        run(place, variant, 'never')


@pytest.mark.parametrize(
    'options, message',
    [
        (['--learn', '3ba'], '--learn needs --keep'),
        (['--keep', '48'], '--keep 48: expected 1 to 47'),
        (['--untie'], 'has weights of its own already'),
        (['--fixed-axes', '3'], 'for tied embeddings'),
        (['--seq-len', '1'], '--seq-len 1: expected 2 to 128'),
        (['--tokens', '0'], '--tokens: expected a whole number of at least 1, got 0'),
        (['--device', 'tpu9'], "device 'tpu9' cannot be used"),
    ],
)
def test_options_that_do_not_fit_are_refused(place, options, message):
    with pytest.raises(ValueError, match=message):
        run(place, 'source', 'never', *options)
    assert not (place / 'never').exists()


def test_an_existing_folder_is_not_replaced_unasked(place):
    (place / 'there').mkdir()
    with pytest.raises(ValueError, match='exists already'):
        run(place, 'source', 'there')
    run(place, 'source', 'there', '--overwrite')
    assert (place / 'there' / 'rotation.json').exists()


def test_a_folder_without_safetensors_is_refused(place):
    (place / 'empty').mkdir()
    with pytest.raises(ValueError, match='no config.json'):
        run(place, 'empty', 'never')
    shutil.copy(place / 'source' / 'config.json', place / 'empty')
    with pytest.raises(ValueError, match='no model.safetensors.*pickle'):
        run(place, 'empty', 'never')


def test_prepared_data_and_their_tokenizer(place):
    from llmshearing.prepare.tokenizer import plan_tokenizer
    from tests.tiny_data import tiny_data

    work = place / 'prepared'
    make_source(work / 'source')
    data = tiny_data(work, documents=60)
    corpus = read_corpus(data, work / 'source', 97, 16, 400, 64)
    assert all(len(row) == 16 for row in corpus.seen + corpus.held_out)
    assert sum(map(len, corpus.seen)) == 400 and sum(map(len, corpus.held_out)) == 64
    assert read_corpus(data / 'prune', work / 'source', 97, 16, 400, 64).seen
    with pytest.raises(ValueError, match=r'--data .* has the token id \d+, outside a vocabulary of 20: another'):
        read_corpus(data, work / 'source', 20, 16, 400, 64)
    tiny_tokenizer(90).save_pretrained(work / 'source')
    assert plan_tokenizer(str(work / 'source'), False, True).size == 90
    with pytest.raises(ValueError, match='was made with another tokenizer.* it has 97 ids, the one here 90'):
        read_corpus(data, work / 'source', 97, 16, 400, 64)


def test_the_length_of_plain_text_is_at_most_the_source_s_positions(place):
    opened = SourceFolder(place / 'source')
    assert opened.config.max_position_embeddings == 128
    assert RotationSettings().checked(opened).seq_len == 128
    with pytest.raises(ValueError, match="--seq-len 512: expected 2 to 128, the source's positions"):
        RotationSettings(seq_len=512).checked(opened)


def corpus_of(data: Path, text_key: str = 'text') -> Corpus:
    """Some sequences of a file or folder beside the source."""
    return read_corpus(data, data.parent / 'source', 97, 20, 200, 40, text_key)


def test_text_files(tmp_path):
    make_source(tmp_path / 'source')
    (tmp_path / 'text').mkdir()
    (tmp_path / 'text' / 'a.txt').write_text(WORDS)
    make_text(tmp_path / 'text' / 'b.jsonl', 5)
    corpus = corpus_of(tmp_path / 'text')
    assert len(corpus.seen) + len(corpus.held_out) == 12 and len(corpus.held_out) == 1
    assert corpus.seen[0].tolist() == [3 + i for i in range(20)]  # files take turns
    assert corpus.seen[1].tolist() == [3 + i for i in range(20)]
    (tmp_path / 'text' / 'b.jsonl').write_text('{"body": "w1 w2"}\n')
    with pytest.raises(ValueError, match="b.jsonl: .*b.jsonl has no 'text', only body; set --text-key"):
        corpus_of(tmp_path / 'text')
    with pytest.raises(ValueError, match='no such file'):
        corpus_of(tmp_path / 'nowhere')


@pytest.mark.parametrize(
    'name, content, key',
    [
        pytest.param('a.txt', WORDS.encode('utf-16'), 'text', id='utf-16'),
        pytest.param('a.txt', WORDS.encode('utf-8-sig'), 'text', id='utf-8-sig'),
        pytest.param('a.json', RECORD + b'\n', 'text', id='jsonl'),
        pytest.param('a.jsonl', json.dumps({'meta': {'body': WORDS}}).encode(), 'meta.body', id='text_key'),
        pytest.param('a.parquet', parquet_of([{'text': WORDS}]), 'text', id='parquet'),
        pytest.param('a.jsonl.gz', gzip.compress(RECORD), 'text', id='gzip'),
    ],
)
def test_text_is_read_by_its_content(tmp_path, name, content, key):
    make_source(tmp_path / 'source')
    (tmp_path / name).write_bytes(content)
    assert corpus_of(tmp_path / name, key).seen[0].tolist() == [3 + i for i in range(20)]


def test_what_is_held_out_of_a_short_text_is_not_looked_at(tmp_path):
    make_source(tmp_path / 'source')
    (tmp_path / 'a.txt').write_text(' '.join(WORDS.split()[:100]))
    corpus = corpus_of(tmp_path / 'a.txt')
    assert (len(corpus.seen), len(corpus.held_out)) == (4, 1)
    (tmp_path / 'a.txt').write_text(' '.join(WORDS.split()[:30]))
    with pytest.raises(ValueError, match='holds 0 sequences to look at and 1 to measure losses on; give more text'):
        corpus_of(tmp_path / 'a.txt')


def test_json_lines_in_a_text_file_are_records(tmp_path):
    make_source(tmp_path / 'source')
    make_text(tmp_path / 'b.jsonl', 50)
    data = (tmp_path / 'b.jsonl').rename(tmp_path / 'b.txt')
    assert 0 not in corpus_of(data).seen[0]
    data.write_text('{"body": "w1 w2"}\n' * 3)
    with pytest.raises(ValueError, match="has no 'text', only body"):
        corpus_of(data)


def test_text_in_a_linked_folder_is_read(tmp_path):
    make_source(tmp_path / 'source')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'a.txt').write_text(WORDS)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'linked').symlink_to(tmp_path / 'elsewhere')
    assert corpus_of(tmp_path / 'data').seen[0].tolist() == list(range(3, 23))
