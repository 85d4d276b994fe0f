"""``llmshearing trim-vocab`` from a source folder to a trimmed one: exact, atomic, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing import cli
from llmshearing.checkpoints.rotated import has_learned_basis, is_rotated
from llmshearing.checkpoints.source import read_weights
from llmshearing.data.fingerprint import check_tokenizer
from llmshearing.models.source_config import read_config
from llmshearing.models.stored_names import stored_tensors
from llmshearing.models.targets import target_shape
from llmshearing.prepare.pipeline import prepare
from llmshearing.rotation.corpus import read_corpus
from llmshearing.vocabulary import trim_source as stages
from tests.interruptions import stop_after
from tests.models.tiny import VARIANTS, tiny_model
from tests.rotation.models import files
from tests.vocabulary.sources import KINDS, SIZES, make_source, make_text, pages

SIZE = 448
FAMILIES = ('llama-tied', 'gemma2', 'gpt_neox', 'phi3', 'granite', 'starcoder2', 'cohere2', 'qwen3_5_text')
# All others are slow by their number alone.
EVERY_FAMILY = [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in VARIANTS]


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('trim')
    make_text(folder / 'text')
    for kind in KINDS:
        make_source(folder / kind, kind)
    return folder


def command(place: Path, source: str, output: str, *options: str, size: int | None = SIZE) -> int:
    text = ['--data', str(place / 'text'), '--size', str(size)] if size else []
    return cli.main(['trim-vocab', str(place / source), *text, '--output', str(place / output), *options])


def run(place: Path, source: str, output: str, *options: str, size: int | None = SIZE) -> Path:
    assert command(place, source, output, *options, size=size) == 0
    return place / output


def refusal(capsys, place: Path, source: str, *options: str, size: int | None = SIZE) -> str:
    """The one line of a run that does not begin; leaves nothing behind."""
    before = sorted(place.iterdir())
    capsys.readouterr()  # of whoever made the source
    assert command(place, source, 'never', *options, size=size) == 1
    line = capsys.readouterr().err
    assert line.count('\n') == 1 and sorted(place.iterdir()) == before, line
    return line


def record_of(folder: Path) -> dict:
    return json.loads((folder / 'vocabulary.json').read_text())


@torch.no_grad()
def logits(folder: Path, ids: list[int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype).eval()
    model.config._experts_implementation = 'eager'  # the usual one takes no float64
    return model(torch.tensor([ids])).logits[0]


def check_logits(source: Path, folder: Path, kept: list[int]) -> None:
    """On some kept tokens those of the source, of the tokens that stay."""
    own, derived = logits(source, kept[:40]), logits(folder, list(range(40)))
    torch.testing.assert_close(derived, own[:, kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize('kind', KINDS)
def test_the_same_tokens_and_logits_for_text_whose_tokens_stay(place, kind, capsys):
    folder = run(place, kind, f'{kind}-trimmed')
    before, after = (AutoTokenizer.from_pretrained(where) for where in (place / kind, folder))
    kept, same = record_of(folder)['kept'], 0
    assert len(kept) == SIZE == len(after) and len(set(kept)) == SIZE
    for line in pages()[1].splitlines():
        for text in (line, *line.split(' ')):
            ids = before(text)['input_ids']
            if set(ids) <= set(kept):
                new = after(text)['input_ids']
                assert [kept[number] for number in new] == ids, text
                same += 1
    assert same > 100
    assert {'torch_dtype', 'rope_theta'} <= json.loads((folder / 'config.json').read_text()).keys()  # older names
    own, derived = logits(place / kind, ids := kept[::5]), logits(folder, list(range(0, SIZE, 5)))
    assert len(ids) == len(own)
    torch.testing.assert_close(derived, own[:, kept], rtol=0, atol=1e-13)
    out = capsys.readouterr().out
    told = ('| code | ', f'| {SIZE} | ', '| pages | ', 'what enters the LM head is equal to the last bit')
    assert all(words in out for words in told)
    assert 'Größe 你好 🙂' in after.decode(after('Größe 你好 🙂')['input_ids']) or kind == 'unigram'  # bytes stay


@pytest.mark.parametrize('variant', EVERY_FAMILY)
def test_every_family(place, variant):
    """Tied heads and own ones, with a bias in one, under the names that each family has."""
    source = make_source(place / f'source-{variant}', variant=variant)
    folder = run(place, source.name, f'trimmed-{variant}')
    kept = record_of(folder)['kept']
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == SIZE == model.get_input_embeddings().weight.shape[0]
    check_logits(source, folder, kept)
    before, after = map(weights_of, (source, folder))
    changed = {name for name in before if before[name].shape != after[name].shape}
    tied = model.config.tie_word_embeddings
    assert before.keys() == after.keys() and len(changed) == 2 - tied
    assert all(torch.equal(before[name][kept] if name in changed else before[name], after[name]) for name in before)
    parameters = ((name, value) for name, value in model.state_dict().items() if 'rotary' not in name)
    assert all(name in after or tied for pair in parameters for name, _ in stored_tensors(model.config, *pair))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Under one set of names, where transformers has several for some layers in files."""
    return {name: weight.read() for name, weight in read_weights(folder, read_config(folder)).items()}


def test_a_bias_of_the_head_loses_its_rows(place):
    source = make_source(place / 'phi', variant='phi')
    folder = run(place, 'phi', 'phi-trimmed')
    kept = record_of(folder)['kept']
    before, after = (load_file(where / 'model.safetensors')['lm_head.bias'] for where in (source, folder))
    assert torch.equal(after, before[kept]) and before.abs().sum() > 0
    check_logits(source, folder, kept)


def test_the_files_of_a_folder(place):
    folder = run(place, 'llama3', 'files')
    record, source = record_of(folder), place / 'llama3'
    new = {old: number for number, old in enumerate(record['kept'])}
    config, own = (json.loads((where / 'config.json').read_text()) for where in (folder, source))
    ids = {f'{name}_token_id' for name in ('bos', 'eos', 'pad')}
    assert {key for key in own if own[key] != config[key]} == {'vocab_size', *ids}
    assert all(config[key] == new[own[key]] for key in ids)
    generation = json.loads((folder / 'generation_config.json').read_text())
    assert generation['eos_token_id'] == config['eos_token_id']
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer('a')['input_ids'][0] == tokenizer.bos_token_id == config['bos_token_id']  # by the post-processor
    assert '<reserved>' in tokenizer.get_added_vocab()
    decoder = json.loads((folder / 'tokenizer_config.json').read_text()).get('added_tokens_decoder', {})
    assert all(tokenizer.convert_ids_to_tokens(int(number)) == token['content'] for number, token in decoder.items())
    card = (folder / 'README.md').read_text()
    assert 'license: mit' in card and 'tokens_per_byte.svg' in card and '| code | ' in card
    assert (folder / 'LICENSE').read_bytes() == (source / 'LICENSE').read_bytes()
    assert (folder / 'tokens_per_byte.svg').read_text().startswith('<svg xmlns')
    curve = record['by_size']
    assert curve['sizes'] == sorted(curve['sizes']) and curve['sizes'][-1] == SIZES['llama3'] and SIZE in curve['sizes']
    for values in curve['tokens_per_byte'].values():
        assert values[0] > values[-1]
    growth = record['tokens_per_byte']
    assert all(growth['after'][name] >= growth['before'][name] for name in ('code', 'pages'))
    assert record['checked']['words_kept'] > 100 and record['settings']['size'] == SIZE


def test_other_forms_of_the_vocabulary_are_left_out(place):
    source = shutil.copytree(place / 'byte-level', place / 'forms')
    others = {'vocab.json', 'merges.txt', 'tokenizer.model', 'tokenizer.model.v3', 'tokenizer.tiktoken'}
    for name in others:
        (source / name).write_text('old')
    added = {'<s>': 1, '</s>': 2}
    (source / 'added_tokens.json').write_text(json.dumps(added))
    folder = run(place, 'forms', 'forms-trimmed')
    assert not {path.name for path in folder.iterdir()} & others
    assert json.loads((folder / 'added_tokens.json').read_text()) == added


def test_a_rotated_source_stays_one(place):
    source = shutil.copytree(place / 'byte-level', place / 'rotated')
    (source / 'rotation.json').write_text(json.dumps({'learned': {'keep': 32}}))
    folder = run(place, 'rotated', 'rotated-trimmed')
    assert is_rotated(folder) and has_learned_basis(folder)
    assert not is_rotated(run(place, 'byte-level', 'rotated-trimmed', '--overwrite'))


def test_the_same_text_gives_the_same_bytes(place):
    run(place, 'byte-level', 'twice')
    first = files(place / 'twice')
    assert files(run(place, 'byte-level', 'twice', '--overwrite')) == first


def test_types_stay(place):
    source = shutil.copytree(place / 'byte-level', place / 'half')
    tensors = load_file(source / 'model.safetensors')
    save_file({name: one.bfloat16() for name, one in tensors.items()}, source / 'model.safetensors', {'format': 'pt'})
    folder = run(place, 'half', 'half-trimmed')
    assert {one.dtype for one in load_file(folder / 'model.safetensors').values()} == {torch.bfloat16}


@pytest.mark.parametrize('variant', ['llama-tied', 'gpt_neox', 'gemma2'])
def test_large_models_are_checked_from_their_files(place, monkeypatch, variant):
    make_source(place / f'paged-{variant}', variant=variant)
    monkeypatch.setattr(stages, 'WHOLE_UP_TO', 0)
    opened = []
    from llmshearing.vocabulary import proof

    monkeypatch.setattr(proof, 'open_strictly', opened.append)
    folder = run(place, f'paged-{variant}', f'paged-{variant}-trimmed')
    assert not opened and record_of(folder)['checked']['largest_logit_difference'] < 1e-5


@pytest.mark.parametrize('stage', ['write_files', 'check_logits', 'write_trim_record'])
def test_a_killed_run_leaves_no_folder(place, monkeypatch, stage):
    with monkeypatch.context() as patch:
        stop_after(patch, stages, stage, 0, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            command(place, 'byte-level', 'killed')
    assert not (place / 'killed').exists() and not (place / '.killed.partial').exists()


def test_a_wrong_result_gets_no_name(place, monkeypatch, capsys):
    real = stages.trimmed_tensors

    def shifted(stored, by_token, kept):
        yield from real(stored, by_token, [*kept[1:], kept[0]])

    monkeypatch.setattr(stages, 'trimmed_tensors', shifted)
    assert '.weight is not what the source has' in refusal(capsys, place, 'byte-level')


def test_wished_tokens_stay_with_their_parts(place):
    source = AutoTokenizer.from_pretrained(place / 'byte-level')
    without = AutoTokenizer.from_pretrained(run(place, 'byte-level', 'without'))
    wished = max(source.get_vocab().keys() - without.get_vocab().keys(), key=len)
    (place / 'keep.txt').write_text(f'{wished}\n')
    trimmed = AutoTokenizer.from_pretrained(run(place, 'byte-level', 'with', '--keep', str(place / 'keep.txt')))
    text = source.decode([source.get_vocab()[wished]])
    assert trimmed.tokenize(text) == [wished] and len(trimmed) == SIZE


def test_a_teacher_like_the_student(place, capsys):
    student = run(place, 'byte-level', 'student')
    make_source(place / 'teacher', variant='gemma2')
    teacher = run(place, 'teacher', 'teacher-trimmed', '--like', str(student), size=None)
    assert record_of(teacher)['kept'] == record_of(student)['kept']
    assert (teacher / 'tokenizer.json').read_bytes() == (student / 'tokenizer.json').read_bytes()
    line = refusal(capsys, place, 'llama3', '--like', str(student), size=None)
    assert 'was made from another tokenizer' in line
    assert 'leave out --data' in refusal(capsys, place, 'teacher', '--like', str(student))
    settings = json.loads((place / 'teacher' / 'config.json').read_text())
    gone = next(number for number in range(SIZES['byte-level']) if number not in record_of(student)['kept'])
    (place / 'teacher' / 'config.json').write_text(json.dumps({**settings, 'eos_token_id': [2, gone]}))
    line = refusal(capsys, place, 'teacher', '--like', str(student), size=None)
    assert f'needs the id {gone} as well' in line


def test_prepared_data(place, tmp_path, capsys):
    """Counted as it is; and data of the old tokenizer is refused for the trimmed model, by runs and by rotate."""
    domains = {'pages': str(place / 'text' / 'pages.jsonl'), 'code': str(place / 'text' / 'code.txt')}
    source = place / 'byte-level'
    settings = {'tokenizer': str(source), 'max_seq_len': 32, 'domains': domains, 'splits': {'train': {}}}
    prepare({**settings, 'out': str(tmp_path / 'mds')}, progress=False)
    options = ['--size', str(SIZE), '--output', str(tmp_path / 'small')]
    assert cli.main(['trim-vocab', str(source), '--data', str(tmp_path / 'mds'), *options]) == 0
    assert '| code | ' in capsys.readouterr().out
    trimmed = AutoTokenizer.from_pretrained(tmp_path / 'small')
    with pytest.raises(ValueError, match='made with another tokenizer'):
        check_tokenizer(trimmed, [(str(tmp_path / 'mds' / 'train' / 'code'), None)])
    with pytest.raises(ValueError, match='made with another tokenizer'):
        read_corpus(tmp_path / 'mds', tmp_path / 'small', SIZE, 16, 100, 50)
    prepare({**settings, 'tokenizer': str(tmp_path / 'small'), 'out': str(tmp_path / 'new')}, progress=False)
    check_tokenizer(trimmed, [(str(tmp_path / 'new' / 'train' / 'code'), None)])
    again = ['trim-vocab', str(source), '--data', str(tmp_path / 'new'), *options[:2], '--output', str(tmp_path / 'x')]
    assert cli.main(again) == 1
    assert 'made with another tokenizer' in capsys.readouterr().err


@pytest.mark.parametrize(
    'options, size, message',
    [
        ([], 64, r'--size 64: 260 tokens stay at any size .* possible are multiples of 64 from 320 to 576'),
        ([], 640, r'--size 640: the tokenizer has 640 tokens, and fewer are to stay; possible are'),
        ([], 450, r'--size 450 is no multiple of 64 \(--multiple-of\); possible are multiples of 64 from 320 to 576'),
        (['--multiple-of', '0'], 448, '--multiple-of: expected a whole number of at least 1, got 0'),
        (['--multiple-of', '700'], 448, 'no multiple of 700 is possible'),
        (['--keep', 'none.txt'], 448, '--keep none.txt: no such file'),
        ([], None, '--data and --size say which tokens stay'),
    ],
)
def test_sizes_and_options_that_are_refused(place, capsys, options, size, message):
    assert re.search(message, refusal(capsys, place, 'byte-level', *options, size=size))


def test_a_size_of_another_multiple(place):
    folder = run(place, 'byte-level', 'five-hundred', '--multiple-of', '500', size=500)
    assert record_of(folder)['settings']['size'] == 500


def test_refusals_of_source_text_and_place(place, capsys):
    broken = shutil.copytree(place / 'byte-level', place / 'broken')
    content = json.loads((broken / 'tokenizer.json').read_text())
    (broken / 'tokenizer.json').write_text(json.dumps({**content, 'model': {'type': 'WordLevel', 'vocab': {}}}))
    assert 'made by WordLevel; only BPE and Unigram' in refusal(capsys, place, 'broken')
    (broken / 'tokenizer.json').unlink()
    assert 'holds no tokenizer.json' in refusal(capsys, place, 'broken')
    assert 'is no Hugging Face model folder' in refusal(capsys, place, 'text')
    (place / 'wrong.txt').write_text('nosuchtoken\n')
    line = refusal(capsys, place, 'byte-level', '--keep', str(place / 'wrong.txt'))
    assert "has no token 'nosuchtoken'" in line
    assert 'no such file or folder' in refusal(capsys, place, 'byte-level', '--data', str(place / 'nowhere'))
    (place / 'void').mkdir()
    assert 'the folder is empty' in refusal(capsys, place, 'byte-level', '--data', str(place / 'void'))
    no_unknown = shutil.copytree(place / 'unigram', place / 'no-unknown')
    content = json.loads((no_unknown / 'tokenizer.json').read_text())
    content['model']['unk_id'] = None
    (no_unknown / 'tokenizer.json').write_text(json.dumps(content))
    assert 'no-unknown cannot encode every text (' in refusal(capsys, place, 'no-unknown')
    cut = shutil.copytree(place / 'byte-level', place / 'cut')
    tensors = load_file(cut / 'model.safetensors')
    del tensors['model.norm.weight']
    save_file(tensors, cut / 'model.safetensors', {'format': 'pt'})
    assert command(place, 'cut', 'never') == 1 and not (place / 'never').exists()
    assert 'missing: model.norm.weight' in capsys.readouterr().err  # in several lines
    quantised = shutil.copytree(place / 'byte-level', place / 'quantised')
    settings = json.loads((quantised / 'config.json').read_text())
    quantised_by = {'quant_method': 'gptq', 'bits': 4}
    (quantised / 'config.json').write_text(json.dumps({**settings, 'quantization_config': quantised_by}))
    assert 'has quantised weights (gptq)' in refusal(capsys, place, 'quantised')
    make_source(place / 'few-rows', vocab_size=600)
    assert 'has the id 639, but the embedding 600 rows' in refusal(capsys, place, 'few-rows')
    run(place, 'byte-level', 'there')
    capsys.readouterr()
    assert command(place, 'byte-level', 'there') == 1
    out, line = capsys.readouterr()
    assert 'trim-vocab: --output: ' in line and 'exists already' in line and not out  # before any work
    assert command(place, 'there', 'there', '--overwrite') == 1
    assert 'is not replaced, as' in capsys.readouterr().err


def test_a_tokenizer_without_an_end_token_is_counted_alike(place):
    source = shutil.copytree(place / 'byte-level', place / 'endless')
    path = source / 'tokenizer_config.json'
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in settings.items() if key != 'eos_token'}))
    (source / 'special_tokens_map.json').unlink(missing_ok=True)
    kept = [record_of(run(place, kind, f'{kind}-counted'))['kept'] for kind in ('byte-level', 'endless')]
    assert kept[0] == kept[1]


def test_rows_without_a_token_go_first_and_named_ids_stay(place):
    source = make_source(place / 'padded', vocab_size=704)
    settings = json.loads((source / 'config.json').read_text())
    (source / 'config.json').write_text(json.dumps({**settings, 'eos_token_id': [2, 700]}))
    folder = run(place, 'padded', 'padded-trimmed')
    kept = record_of(folder)['kept']
    assert kept[-1] == 700 and max(kept[:-1]) < 640
    assert json.loads((folder / 'config.json').read_text())['eos_token_id'] == [2, SIZE - 1]


def test_a_target_with_a_vocabulary_size_names_the_command():
    with pytest.raises(ValueError, match='vocab_size is no part of a shape.*`llmshearing trim-vocab SOURCE'):
        target_shape(tiny_model('llama').config, {'vocab_size': 64, 'hidden_size': 24})
