"""``llmshearing cut`` from one folder to a smaller one: every family, the same bytes, atomic, and what it refuses."""

from __future__ import annotations

import gc
import json
import re
import shutil
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llmshearing import cli
from llmshearing.checkpoints.weights_in_file import open_in_file
from llmshearing.cut import cut_source as stages
from llmshearing.cut import plan as plans
from llmshearing.cut import source as sources
from llmshearing.cut.cut_source import cut_source
from llmshearing.cut.settings import CutSettings
from llmshearing.cut.text import read_texts
from llmshearing.metrics.pruning_record import read_record
from llmshearing.models.shapes import shape_of
from llmshearing.rotation import in_memory
from llmshearing.rotation.stream import check_rotatable
from llmshearing.utils.numbers import with_unit
from tests.interruptions import stop_after
from tests.models.tiny import VARIANTS, tiny_model
from tests.rotation.models import files, make_text, save_source

TARGET = {'fraction': {'num_hidden_layers': 0.5, 'hidden_size': 0.5, 'intermediate_size': 0.5}, 'multiple_of': 8}
SMALL = {'tokens': 320, 'held_out': 80, 'seq_len': 20}


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every character of the tests' text. transformers 5 reads it in the folder of a qwen2, too."""
    words = ['<pad>', '<s>', '</s>', *'wtex0123456789Ġ']
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='<pad>', bos_token='<s>', eos_token='</s>')


def make_source(folder: Path, variant: str = 'llama', **overrides) -> Path:
    return save_source(folder, tiny_model(variant, **overrides), character_tokenizer())


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('cut')
    make_source(folder / 'source')
    make_text(folder / 'text.jsonl', 300)
    return folder


def cut(place: Path, output: str, source: str = 'source', target=None, **settings):
    settings = CutSettings(**{**SMALL, **settings})
    text = [place / 'text.jsonl']
    return cut_source(place / source, TARGET if target is None else target, text, place / output, settings, 'cpu')


@pytest.fixture(autouse=True)
def little_speed(monkeypatch):
    """Measures speed on a few tokens, which is most of what a tiny model's cut takes."""
    monkeypatch.setattr(stages, 'tokens_per_second', partial(stages.tokens_per_second, new_tokens=2))


@pytest.mark.parametrize('tied', [False, True], ids=['untied', 'tied'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_family_is_cut(place, tmp_path, variant, tied):
    # transformers 4 has qwen2's window in every layer, so that sequences beyond it are refused there
    window = {'sliding_window': 32} if variant == 'qwen2' else {}
    source = make_source(tmp_path / 'source', variant, tie_word_embeddings=tied, **window)
    result = cut_source(source, TARGET, [place / 'text.jsonl'], tmp_path / 'out', CutSettings(**SMALL), 'cpu')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'source']
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
    assert shape_of(model.config) == result.plan.target
    got = shape_of(model.config)
    assert (got.num_hidden_layers, got.hidden_size, got.intermediate_size) == (2, 24, 32)
    assert sum(parameter.numel() for parameter in model.parameters()) == result.plan.parameters
    assert bool(model.config.tie_word_embeddings) == tied
    own, derived = (AutoTokenizer.from_pretrained(folder)('w7 w10') for folder in (source, tmp_path / 'out'))
    assert own['input_ids'] == derived['input_ids'] and len(own['input_ids']) >= 6
    (text,) = read_texts([place / 'text.jsonl'], source, 97, 20, 320, 80, 17)
    ids = torch.stack([torch.from_numpy(row) for row in text.held_out])
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() == pytest.approx(result.losses['text'][1], abs=1e-4)
        own = AutoModelForCausalLM.from_pretrained(source)(ids, labels=ids).loss.item()
    assert own == pytest.approx(result.losses['text'][0], abs=1e-4)
    try:
        check_rotatable(model.config)
    except ValueError:
        assert result.rotated is None and f'{model.config.model_type} cannot be rotated' in result.plan.lines()[2]
    else:
        assert abs(result.rotated.loss_after - result.rotated.loss_before) < 0.02


def test_the_same_text_and_seed_give_the_same_bytes(place, tmp_path):
    for number in (1, 2, 3):
        cut(place, tmp_path / str(number) / 'out', seed=min(number, 2))
    first, second, third = (files(tmp_path / str(number) / 'out') for number in (1, 2, 3))
    assert second == third
    assert first['model.safetensors'] != second['model.safetensors']


def test_what_is_written_beside_the_weights(place, tmp_path):
    result = cut(place, tmp_path / 'out')
    folder = tmp_path / 'out'
    card = (folder / 'README.md').read_text()
    assert 'license: mit' in card and 'not trained since' in card and '- compensated: yes' in card
    assert f'| text | {result.losses["text"][1]:.4f} |' in card
    record = read_record(folder)
    assert record.mask_learning == 'one_shot' and record.batches == 0 and len(record.kept['hidden']) == 24
    assert (folder / 'LICENSE').read_text() == 'MIT, as it were'
    assert result.difference < 1e-4 and result.disk_bytes[1] < result.disk_bytes[0]


def test_a_budget_keeps_the_heads_and_says_so(place, tmp_path, capsys):
    command = ['cut', place / 'source', '--target', 'params=40k', 'multiple_of=8', 'tolerance=0.1', '--text']
    command += [place / 'text.jsonl', '--output', tmp_path / 'out', '--dtype', 'bfloat16', '--device', 'cpu']
    assert cli.main([str(part) for part in command]) == 0
    config = AutoModelForCausalLM.from_pretrained(tmp_path / 'out').config
    assert (config.num_attention_heads, config.num_key_value_heads) == (6, 2)
    assert {t.dtype for t in load_file(tmp_path / 'out' / 'model.safetensors').values()} == {torch.bfloat16}
    out = capsys.readouterr().out
    assert 'takes about' in out and 'tokens/s, writing' in out and 'llmshearing train RUN.yaml' in out
    assert f'model.pretrained_model_name_or_path: {tmp_path / "out"}' in out


def test_the_plan_of_a_budget_says_how_to_keep_all_layers(place):
    budget = {'params': '24k', 'multiple_of': 4, 'tolerance': 0.1}
    plan = plans.plan_cut(place / 'source', budget, CutSettings())
    layers = plan.config.num_hidden_layers
    pinned = plans.plan_cut(place / 'source', {**budget, 'num_hidden_layers': layers}, CutSettings())
    assert plan.target.num_hidden_layers < layers and pinned.target == plan.with_all_layers
    said = f'num_hidden_layers={layers} beside the budget .*, with hidden_size={pinned.target.hidden_size}, '
    assert re.search(said, '\n'.join(plan.lines()))
    assert pinned.with_all_layers is None and 'beside the budget' not in '\n'.join(pinned.lines())


@pytest.mark.parametrize('where', ['prune_in_one_shot', 'verify_folder'])
def test_stopped_anywhere_nothing_is_left_and_the_next_start_is_clean(place, tmp_path, monkeypatch, where):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, stages, where, 0, KeyboardInterrupt)
        cut(place, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []
    (tmp_path / '.out.partial').mkdir()  # of one that was killed, who cannot tidy up
    (tmp_path / '.out.partial' / 'model.safetensors').write_bytes(b'half')
    cut(place, tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_a_large_source_is_cut_from_a_file_to_the_same_model(place, tmp_path, monkeypatch):
    cut(place, tmp_path / 'whole')
    opened = []
    monkeypatch.setattr(plans, 'WHOLE_UP_TO', 10_000)
    monkeypatch.setattr(sources, 'open_in_file', lambda *a: opened.append(a[0].name) or open_in_file(*a))
    monkeypatch.setattr(stages, 'verify_folder', lambda *_: pytest.fail('the folder was opened in float32'))
    result = cut(place, tmp_path / 'paged')
    assert opened == ['source', 'paged']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['paged', 'whole']
    assert result.difference is None
    outputs = [tmp_path / 'whole', tmp_path / 'paged']
    one, other = ((folder / 'config.json').read_text() for folder in outputs)
    assert one == other
    one, other = (read_record(folder).kept for folder in outputs)
    assert one == other
    whole, paged = (load_file(folder / 'model.safetensors') for folder in outputs)
    assert whole.keys() == paged.keys()
    for name, tensor in whole.items():  # kernels go by a weight's place in memory, and fits hand on what they round
        assert (paged[name] - tensor).norm() < 1e-4 * tensor.norm(), name
    assert 'every tensor read back and compared' in '\n'.join(result.lines())
    assert f'meanwhile {with_unit(4 * result.plan.source_parameters, "B")}' in result.plan.lines()[-1]
    usage, needed = shutil.disk_usage(tmp_path), result.plan.bytes + result.plan.scratch
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=needed - 1))
    with pytest.raises(ValueError, match="with the source's weights beside it"):
        cut(place, tmp_path / 'again')


def test_a_large_source_is_cut_into_a_folder_that_is_yet_to_be_made(place, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, 'WHOLE_UP_TO', 10_000)
    cut(place, tmp_path / 'runs' / 'new' / 'out', compensate=False)
    assert (tmp_path / 'runs' / 'new' / 'out' / 'model.safetensors').is_file()


def test_rotation_and_compensation_each_change_the_result(place, tmp_path):
    losses = [
        cut(place, tmp_path / f'{rotate}{compensate}', rotate=rotate, compensate=compensate).losses['text'][1]
        for rotate in (True, False)
        for compensate in (True, False)
    ]
    assert len(set(losses)) == 4


def test_a_learned_basis_is_cut_in_its_order_and_not_turned_again(place, tmp_path):
    source = shutil.copytree(place / 'source', tmp_path / 'source')
    (source / 'rotation.json').write_text('{"learned": {"steps": 30}}')
    settings, text = CutSettings(**SMALL, compensate=False), [place / 'text.jsonl']
    result = cut_source(source, {'hidden_size': 24}, text, tmp_path / 'out', settings, 'cpu')
    assert result.rotated is None and 'the basis that `llmshearing rotate --learn` found' in result.plan.lines()[2]
    whole, left = (load_file(folder / 'model.safetensors') for folder in (source, tmp_path / 'out'))
    assert torch.equal(left['model.embed_tokens.weight'], whole['model.embed_tokens.weight'][:, :24])


def test_a_rotation_that_changes_the_model_is_refused(place, tmp_path, monkeypatch):
    def broken(model, rotation):
        model.lm_head.weight.zero_()

    monkeypatch.setattr(in_memory, 'rotate_model', broken)
    monkeypatch.setattr(in_memory, 'LARGEST_RAISE', -1.0)  # to a random model no weights are better than others
    with pytest.raises(ValueError, match='rotated, the model has a loss of .* --no-rotate'):
        cut(place, tmp_path / 'out')


def refusal(capsys, *arguments) -> str:
    assert cli.main(['cut', *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith('llmshearing cut: ')
    assert ' s] source: t' not in captured.out  # no loss was measured
    return captured.err


@pytest.fixture
def unread(monkeypatch):
    """No weight is read."""
    monkeypatch.setattr(stages, 'open_source', lambda *_: pytest.fail('weights were read'))


@pytest.mark.parametrize(
    'options, message',
    [
        ('params=1G', 'params: not a count'),
        ('params=10M', 'the source has .*pruning only removes'),
        ('params=100 multiple_of=8', 'embedding alone has'),
        ('hidden_size=96', "larger than the source's 48"),
        ('hidden_size=48', 'nothing would be cut'),
        ('hidden_size=24 --axes layer', 'names hidden_size, which --axes'),
        ('hidden_size=24 --axes width', "--axes: expected one of .*, got 'width'"),
        (
            'size=200KB dtype=bfloat16',
            'counts its size in bfloat16, but .* in float32; leave dtype out of the target, or add --dtype bfloat16',
        ),
        ('hidden_size=24 --scores best', "unknown method 'best'"),
        ('hidden_size=24 --scores a b', 'AXIS=METHOD of each axis once'),
        ('hidden_size=24 --scores hidden=taylor hidden=random', 'AXIS=METHOD of each axis once'),
        ('hidden_size=24 --dtype int8', "--dtype: expected one of .*, got 'int8'"),
        ('hidden_size=24 --device tpu9', "device 'tpu9' cannot be used"),
        ('hidden_size=24 --text nowhere.jsonl', 'nowhere.jsonl.* does not exist'),
        ('hidden_size=24 --output {place}/source', 'is the source itself'),
        ('hidden_size=24 --output {place}', 'exists already'),
        (f'hidden_size=24 --seed {2**63}', 'a whole number from 0 to'),
        ('hidden_size=24 --scores reap', 'reap scores none of the axes'),
        ('hidden_size=24 --scores expert=reap', 'has no such axis'),
        ('hidden_size=24 --output {place}/text.jsonl/out', 'as .* is no folder'),
        ('hidden_size=24 --output s3://bucket/out', 'on this machine'),
    ],
)
def test_what_is_not_possible_is_one_message_before_any_work(place, tmp_path, capsys, unread, options, message):
    options = ['--target', *options.format(place=place).split()]
    for option, default in (('--text', place / 'text.jsonl'), ('--output', tmp_path / 'out')):
        options += [] if option in options else [option, default]
    assert re.search(message, refusal(capsys, place / 'source', *options), re.DOTALL)
    assert list(tmp_path.iterdir()) == []


def test_some_text_must_be_named(place, tmp_path, capsys, unread):
    line = refusal(capsys, place / 'source', '--target', 'params=40k', '--output', tmp_path / 'out')
    assert 'name some text with --text FILE' in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('dtype', 'width'), [(None, 4), ('bfloat16', 2)])
def test_a_size_counts_bytes_of_what_is_written(place, dtype, width):
    asked = {'size': 40_000 * width, 'multiple_of': 4, 'tolerance': 0.05}
    plan = plans.plan_cut(place / 'source', asked, CutSettings(dtype=dtype))
    assert plan.parameters * width == plan.bytes and 38_000 * width < plan.bytes < 42_000 * width


def test_sources_that_cannot_be_cut(place, tmp_path, capsys):
    rest = ['--target', 'hidden_size=24', '--text', place / 'text.jsonl', '--output', tmp_path / 'out']
    assert 'no model folder' in refusal(capsys, tmp_path / 'nowhere', *rest)
    assert 'is a config alone' in refusal(capsys, place / 'source' / 'config.json', *rest)
    (tmp_path / 'other').mkdir()
    config = json.loads((place / 'source' / 'config.json').read_text())
    (tmp_path / 'other' / 'config.json').write_text(json.dumps({'model_type': 'gpt2'}))
    assert "'gpt2'" in refusal(capsys, tmp_path / 'other', *rest)
    (tmp_path / 'other' / 'config.json').write_text(json.dumps(config))
    assert 'cannot be loaded' in refusal(capsys, tmp_path / 'other', *rest)  # no tokenizer
    shutil.copytree(place / 'source', tmp_path / 'broken')
    tensors = load_file(tmp_path / 'broken' / 'model.safetensors')
    tensors['model.norm.weight'][3] = float('nan')
    save_file(tensors, tmp_path / 'broken' / 'model.safetensors', {'format': 'pt'})
    assert 'model.norm.weight holds NaN' in refusal(capsys, tmp_path / 'broken', *rest)


@pytest.mark.parametrize(
    ('broken', 'message'),
    [
        ('missing', r'model\.layers\.1\.mlp\.up_proj\.weight'),
        ('layers', r'model\.layers\.9\.mlp\.up_proj\.weight'),
        ('shape', r'model\.norm\.weight'),
        ('quantised', 'is stored as int8: quantised weights can neither be cut nor trained'),
        ('quantization_config', 'quanti[sz]'),
        ('adapter', 'adapter'),
        ('pointer', 'git-lfs'),
        ('none', 'no weights|holds no'),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(place, tmp_path, capsys, broken, message):
    """As ``rotate`` refuses them: in one sentence, before any loss is measured."""
    source = shutil.copytree(place / 'source', tmp_path / 'broken')
    weights, config = source / 'model.safetensors', source / 'config.json'
    tensors = load_file(weights)
    up = tensors['model.layers.1.mlp.up_proj.weight']
    if broken == 'missing':
        del tensors['model.layers.1.mlp.up_proj.weight']
    elif broken == 'layers':
        tensors['model.layers.9.mlp.up_proj.weight'] = up.clone()
    elif broken == 'shape':
        tensors['model.norm.weight'] = torch.ones(3)
    elif broken == 'quantised':
        tensors['model.layers.1.mlp.up_proj.weight'] = up.to(torch.int8)
    elif broken == 'quantization_config':
        settings = {'quant_method': 'bitsandbytes', 'load_in_4bit': True}
        config.write_text(json.dumps({**json.loads(config.read_text()), 'quantization_config': settings}))
    elif broken == 'adapter':
        (source / 'adapter_config.json').write_text('{}')
        save_file({'x.lora_A.weight': torch.ones(1)}, source / 'adapter_model.safetensors')
    save_file(tensors, weights, {'format': 'pt'})
    if broken == 'pointer':
        weights.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n')
    elif broken == 'none':
        weights.unlink()
    rest = ['--target', 'hidden_size=24', '--text', place / 'text.jsonl', '--output', tmp_path / 'out']
    line = refusal(capsys, source, *rest)
    assert re.search(message, line) and 'Traceback' not in line
    assert not (tmp_path / 'out').exists()


def test_a_disk_without_room_is_refused(place, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1000))
    rest = ['--target', 'hidden_size=24', '--text', place / 'text.jsonl', '--output', tmp_path / 'out']
    assert '1.00 kB are free there' in refusal(capsys, place / 'source', *rest)


def test_the_source_has_left_memory_when_the_result_is_opened(place, tmp_path, monkeypatch):
    models, open_source, measure = [], stages.open_source, stages.tokens_per_second

    def opened(*arguments):
        model = open_source(*arguments)
        models.append(weakref.ref(model))
        return model

    alive = []
    monkeypatch.setattr(stages, 'open_source', opened)
    monkeypatch.setattr(
        stages, 'tokens_per_second', lambda *a, **k: alive.append(models[0]() is not None) or measure(*a, **k)
    )
    gc.collect()
    gc.disable()
    try:
        cut(place, tmp_path / 'out')
    finally:
        gc.enable()
    assert alive == [True, False]
