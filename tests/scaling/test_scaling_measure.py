"""Measured loss is llm-foundry's number, whatever the encoding of the shards; everything else is one clear message."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from composer.metrics import LanguageCrossEntropy
from safetensors.torch import load_file, save_file
from streaming import MDSWriter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmshearing.data.fingerprint import describe_tokenizer
from llmshearing.data.mds import read_tokens
from llmshearing.export.model_folder import open_strictly
from llmshearing.models.source_config import read_config
from llmshearing.scaling.loss import batches, domain_loss
from llmshearing.scaling.measure import find_domains, load_model, measure_models
from tests.dynamic_text_world import tiny_tokenizer
from tests.models.tiny import ROTARY_BASE, rotary_model

SEQUENCES = np.random.default_rng(0).integers(0, 64, (7, 32))


def write_domain(folder, encoding='ndarray:uint16:32', sequences=SEQUENCES, **options):
    with MDSWriter(out=str(folder), columns={'tokens': encoding}, **options) as writer:
        for sequence in sequences:
            dtype = np.int64 if encoding == 'bytes' else np.dtype(encoding.split(':')[1])
            tokens = np.asarray(sequence, dtype=dtype)
            writer.write({'tokens': tokens.tobytes() if encoding == 'bytes' else tokens})


@pytest.fixture
def data(tmp_path):
    write_domain(tmp_path / 'data/eval/code')
    write_domain(tmp_path / 'data/eval/web', sequences=SEQUENCES[::-1] // 2)
    return tmp_path / 'data'


@pytest.fixture
def source(tmp_path, tiny_llama):
    tiny_llama().save_pretrained(tmp_path / 'source')
    return str(tmp_path / 'source')


@pytest.mark.parametrize(
    'encoding, options',
    [
        ('ndarray:uint16:32', {}),
        ('ndarray:uint32:32', {}),
        ('ndarray:uint32', {}),
        ('bytes', {}),
        ('ndarray:uint16:32', {'compression': 'zstd', 'hashes': ['sha1']}),
        ('ndarray:uint16:32', {'size_limit': 300}),
    ],
)
def test_tokens_come_back_in_order(tmp_path, encoding, options):
    write_domain(tmp_path / 'code', encoding, **options)
    read = list(read_tokens(tmp_path / 'code'))
    assert all(tokens.dtype == np.int64 for tokens in read)
    np.testing.assert_array_equal(np.stack(read), SEQUENCES)
    if 'size_limit' in options:
        assert len(json.loads((tmp_path / 'code/index.json').read_text())['shards']) > 1


def test_loss_is_language_cross_entropy(data, tiny_llama):
    model = tiny_llama()
    metric = LanguageCrossEntropy()
    with torch.no_grad():
        for batch in torch.from_numpy(SEQUENCES).split(2):
            targets = torch.cat([batch[:, 1:], torch.full((len(batch), 1), -100)], dim=1)
            metric.update(model(batch).logits, targets)
    for batch_size in (1, 3, 16):
        measured = domain_loss(model, read_tokens(data / 'eval/code'), batch_size, 'code')
        assert measured['loss'] == pytest.approx(metric.compute().item(), rel=1e-6)
        assert (measured['sequences'], measured['tokens']) == (7, 7 * 31)


def test_every_token_counts_the_same_in_sequences_of_different_length(tiny_llama):
    model = tiny_llama()
    sequences = [SEQUENCES[0], SEQUENCES[1][:8], SEQUENCES[2][:8], SEQUENCES[3]]
    assert [len(batch) for batch in batches(sequences, 4)] == [1, 2, 1]
    total = sum(domain_loss(model, [s], 1, 'x')['loss'] * (len(s) - 1) for s in sequences)
    assert domain_loss(model, sequences, 4, 'x')['loss'] == pytest.approx(total / 76, rel=1e-6)


def test_standard_error_is_that_of_the_mean_over_sequences(tiny_llama):
    model = tiny_llama()
    each = [domain_loss(model, [sequence], 1, 'x')['loss'] for sequence in SEQUENCES]
    measured = domain_loss(model, SEQUENCES, 3, 'x')
    assert measured['standard_error'] == pytest.approx(np.std(each, ddof=1) / math.sqrt(7), rel=1e-4)
    assert domain_loss(model, SEQUENCES[:1], 3, 'x')['standard_error'] is None


def test_parameters_are_exact_with_tied_weights_once(tiny_llama):
    tied, untied = tiny_llama(), tiny_llama(tie_word_embeddings=False)
    assert untied.num_parameters() - tied.num_parameters() == 64 * 32
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert tied.num_parameters() == 64 * 32 + 2 * layer + 32


def test_models_and_domains_are_measured(data, source, tmp_path, tiny_llama):
    tiny_llama(seed=1, num_hidden_layers=1).save_pretrained(tmp_path / 'small')
    lines = []
    points = measure_models([source, str(tmp_path / 'small')], find_domains(data), max_sequences=3, report=lines.append)
    assert [point['params'] for point in points] == [load_model(p['name']).num_parameters() for p in points]
    assert [list(point['losses']) for point in points] == [['code', 'web']] * 2
    assert all(point['evaluation']['web']['sequences'] == 3 for point in points) and len(lines) == 4
    expected = domain_loss(load_model(source), SEQUENCES[:3], 2, 'x')['loss']
    assert points[0]['losses']['code'] == pytest.approx(expected, rel=1e-6)
    half = measure_models([source], find_domains(data, domains=['web']), dtype='bfloat16')[0]['losses']
    assert list(half) == ['web']
    full = measure_models([source], find_domains(data))[0]['losses']['web']
    assert half['web'] != full and half['web'] == pytest.approx(full, rel=0.01)


def test_data_of_another_tokenizer_of_the_same_size(data, source):
    """Without a tokenizer in the model's folder or a manifest beside the data there is nothing to compare."""
    described = describe_tokenizer(tiny_tokenizer())
    (data / 'manifest.json').write_text(json.dumps({'tokenizer': {**described, 'name': 'one', 'class': 'x'}}))
    domains = find_domains(data)
    measure_models([source], domains, max_sequences=1)
    tiny_tokenizer().save_pretrained(source)
    measure_models([source], domains, max_sequences=1)
    other = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    other['model']['vocab'] = {f't{i}': 63 - i for i in range(64)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(other))).save_pretrained(source)
    with pytest.raises(ValueError, match="was made with another tokenizer, 'one' .* prepare the data again"):
        measure_models([source], domains, max_sequences=1)


def test_domains_that_are_not_there(tmp_path, data):
    with pytest.raises(ValueError, match='no such folder; expected one MDS folder per domain'):
        find_domains(tmp_path / 'nothing')
    (tmp_path / 'empty/eval/code').mkdir(parents=True)
    with pytest.raises(ValueError, match='no domain found'):
        find_domains(tmp_path / 'empty')
    with pytest.raises(ValueError, match=r"unknown domain 'arxiv'; .* has \['code', 'web'\]"):
        find_domains(data, domains=['code', 'arxiv'])


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda shard: shard.update(column_names=['text']), 'a column named tokens'),
        (
            lambda shard: shard.update(column_encodings=['str']),
            'column tokens is str, expected ndarray of whole numbers or bytes',
        ),
        (lambda shard: shard['raw_data'].update(basename='gone.mds'), 'shard gone.mds is missing'),
    ],
)
def test_shards_that_cannot_be_read(data, change, message):
    index = json.loads((data / 'eval/code/index.json').read_text())
    change(index['shards'][0])
    (data / 'eval/code/index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        list(read_tokens(data / 'eval/code'))


@pytest.mark.parametrize(
    'content, message',
    [
        ('{}', 'index.json holds no list "shards"'),
        ('nojson', 'index.json is not JSON'),
        ('{"shards": [{}]}', 'is not an index of MDS shards .*the format None'),
        (
            '{"shards": [{"format": "mds", "column_names": ["tokens"]}]}',
            'is not an index of MDS shards .*column_encodings',
        ),
        ('{"shards": [{"raw_data": {"basename": "../x"}}]}', "names the file '../x', outside the folder"),
    ],
)
def test_an_index_that_is_none_is_refused_before_any_model_is_loaded(data, content, message):
    (data / 'eval/web/index.json').write_text(content)
    with pytest.raises(ValueError, match=f'eval/web.*{message}'):
        find_domains(data)
    assert list(find_domains(data, domains=['code'])) == ['code']


@pytest.mark.parametrize('options', [{}, {'compression': 'zstd'}])
@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda content: content[: len(content) // 2], 'bytes, its index says .*: it was cut or changed'),
        (lambda content: bytes(len(content)), 'is damaged|cannot be decompressed'),
        (lambda content: content[:8] + bytes(len(content) - 8), 'is damaged|cannot be decompressed'),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, options, damage, message):
    write_domain(tmp_path / 'code', **options)
    shard = next((tmp_path / 'code').glob('shard*'))
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ValueError, match=f'shard.00000.mds.*({message})'):
        list(read_tokens(tmp_path / 'code'))


@pytest.mark.parametrize(
    'sequences, message',
    [
        ([], ': no sequences to measure'),
        ([np.array([3])], ': .*no next token to predict'),
        ([np.array([3, 64])], ' has the token id 64, outside a vocabulary of 64'),
        ([np.array([3, -1])], ' has the token id -1, outside a vocabulary of 64'),
        ([np.zeros(65, dtype=np.int64)], ': sequences of 65 tokens, but the model has 64 positions'),
    ],
)
def test_sequences_that_cannot_be_measured(tiny_llama, sequences, message):
    with pytest.raises(ValueError, match=f"domain 'code'{message}"):
        domain_loss(tiny_llama(), sequences, 2, "domain 'code'")


def test_a_loss_that_is_not_finite(tiny_llama):
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='the loss is nan; try --dtype float32'):
        domain_loss(model, SEQUENCES, 2, 'code')


def test_models_that_cannot_be_loaded(tmp_path, source):
    for name in (tmp_path / 'nothing', tmp_path):
        with pytest.raises(ValueError, match='not a Hugging Face model that can be loaded'):
            load_model(str(name))
    with pytest.raises(ValueError, match="dtype: expected one of float32, .* got 'int8'"):
        load_model(source, 'int8')
    with pytest.raises(ValueError, match="device 'cuda:7' cannot be used"):
        load_model(source, device='cuda:7')
    weights = load_file(f'{source}/model.safetensors')
    weights.pop('model.layers.1.mlp.up_proj.weight')
    save_file(weights, f'{source}/model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match='missing: model.layers.1.mlp.up_proj.weight'):
        load_model(source)
    (tmp_path / 'source/model.safetensors').write_bytes(b'not tensors')
    with pytest.raises(ValueError, match='not a Hugging Face model that can be loaded'):
        load_model(source)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'num_hidden_layers': 1}, 'not expected: model.layers.1'),
        ({'quantization_config': {'quant_method': 'gptq', 'bits': 4}}, r'has quantised weights \(gptq\)'),
    ],
)
def test_weights_that_the_config_leaves_out_are_not_measured(source, settings, message):
    """A layer that the config did not count was left out, and its losses steered a mixture."""
    path = Path(source) / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(ValueError, match=message):
        load_model(source)


def test_batch_size_is_checked():
    with pytest.raises(ValueError, match='batch_size: expected a whole number of at least 1, got 0'):
        measure_models([], {}, batch_size=0)


def test_a_config_of_either_generation_is_read_as_its_writer_meant_it(tmp_path):
    """Under transformers 4 ``rope_parameters`` alone were taken for nothing, and the base for 10,000."""
    model = rotary_model('llama')
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    for key in ('rope_theta', 'rope_scaling', 'rope_parameters'):
        config.pop(key, None)
    config['rope_parameters'] = {'rope_type': 'default', 'rope_theta': ROTARY_BASE}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        want = model(ids).logits
        assert torch.equal(load_model(str(tmp_path), device='cpu')(ids).logits, want)
        assert torch.equal(open_strictly(tmp_path, config=read_config(tmp_path))(ids).logits, want)
