"""Measurements of a folder against sums done by hand."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from llmshearing.demo.measure import bytes_on_disk, describe_model, generate_samples, peak_memory_bytes, threads
from llmshearing.export.model_folder import open_strictly
from tests.demo.tiny_source import TOKENS, save_tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp('model'))


@pytest.mark.parametrize(
    'damage, named',
    [
        ('missing', "'missing_keys': .'model.layers.1.mlp.up_proj.weight'"),
        ('left over', "'unexpected_keys': .'extra.model.layers.1.mlp.up_proj.weight'"),
        ('shape', 'does not open as a stock model.*mismatched_keys.*model.layers.1.mlp.up_proj.weight'),
    ],
)
def test_a_folder_with_other_weights_is_refused(tmp_path, damage, named):
    save_tiny(tmp_path)
    weights = load_file(tmp_path / 'model.safetensors')
    name = 'model.layers.1.mlp.up_proj.weight'
    weight = weights.pop(name)
    if damage != 'missing':
        weights[f'extra.{name}' if damage == 'left over' else name] = weight[:-1].clone()
    if damage == 'left over':
        weights[name] = weight
    save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=named):
        open_strictly(tmp_path)


def test_description_counts_tied_embeddings_once(folder):
    embedding, layer = len(TOKENS) * 32, 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48 + 2 * 32
    facts = describe_model(folder)
    assert facts['parameters'] == embedding + 2 * layer + 32
    assert facts['bytes_on_disk'] == bytes_on_disk(folder) > 4 * facts['parameters']
    assert facts['shape'] == {
        'num_hidden_layers': 2,
        'hidden_size': 32,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'intermediate_size': 48,
    }
    assert min(facts['forward_tokens_per_second'], facts['generate_tokens_per_second']) > 0


def test_samples_are_greedy_and_leave_out_the_prompt(folder):
    model, sample = open_strictly(folder), generate_samples(folder, ['hello'], max_new_tokens=5)[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer('hello', return_tensors='pt')['input_ids']
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert sample == {'prompt': 'hello', 'continuation': tokenizer.decode(ids[0, 2:], skip_special_tokens=True)}


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_peak_memory_is_of_this_order():
    assert 5e7 < peak_memory_bytes() < 1e12
