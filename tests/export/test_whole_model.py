"""A pruned decoder, put back into the multimodal model, computes there what it computes alone; images still count."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from llmshearing import cli, export
from llmshearing.export.model_folder import open_strictly
from tests.export.cut_folder import export as write_pruned
from tests.export.test_text_part import IDS, WHOLE, make_whole


def text_of(folder, whole):
    assert cli.main(['text-part', str(whole), '--output', str(folder / 'text')]) == 0
    return folder / 'text'


def write_lines(path):
    passages = (' '.join(f'w{i * j % 50}' for j in range(90)) for i in range(40))
    path.write_text(''.join(json.dumps({'text': passage}) + '\n' for passage in passages))
    return path


def cut_text(folder, whole, *target):
    lines = write_lines(folder / 'lines.jsonl')
    command = ['cut', str(text_of(folder, whole)), '--target', *target, '--text', str(lines)]
    assert cli.main([*command, '--output', str(folder / 'small')]) == 0
    return folder / 'small'


@pytest.mark.parametrize('kind', WHOLE)
def test_the_whole_computes_what_its_new_decoder_computes(kind, tmp_path, capsys):
    layers = 2 if kind in ('lfm2_vl', 'qwen3_5', 'qwen3_5_moe') else 1  # their first layer has no attention
    before = make_whole(tmp_path / 'whole', kind)
    (tmp_path / 'whole' / 'preprocessor_config.json').write_text('{"size": 16}')
    (tmp_path / 'whole' / 'additional_chat_templates').mkdir()
    (tmp_path / 'whole' / 'additional_chat_templates' / 'rag.jinja').write_text('{{ documents }}')
    widths = torch.ones(2, getattr(before.config.text_config, 'num_experts', 1), 24)
    widths[..., :8] = 0
    masks = {'layer': torch.tensor([1.0, float(layers > 1)]), 'intermediate': widths.flatten(1)}
    decoder = open_strictly(text_of(tmp_path, tmp_path / 'whole'))
    small = tmp_path / 'small'
    write_pruned(decoder, masks, small)
    out = tmp_path / 'out'
    assert cli.main(['text-part', str(tmp_path / 'whole'), '--put-back', str(small), '--output', str(out)]) == 0
    assert 'others are as they were' in capsys.readouterr().out
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    text = model.config.text_config
    assert (text.num_hidden_layers, getattr(text, 'moe_intermediate_size', text.intermediate_size)) == (layers, 16)
    kept, now = before.state_dict(), model.state_dict()
    text_parts = ('language_model', 'text_model', 'lm_head')
    others = [name for name in kept if not any(part in name for part in text_parts)]
    assert others and all(torch.equal(kept[name], now[name]) for name in others)
    assert (out / 'preprocessor_config.json').read_text() == '{"size": 16}' and (out / 'tokenizer.json').is_file()
    assert (out / 'LICENSE').read_text() == 'as it were'
    assert (out / 'additional_chat_templates' / 'rag.jinja').read_text() == '{{ documents }}'
    assert 'whole with a pruned text part' in (out / 'README.md').read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'small', 'text', 'whole']


def test_the_commands_of_the_readme(tmp_path, monkeypatch):
    readme = Path(export.__file__).with_name('README.md').read_text().replace('=24', '=1').replace('=8192', '=16')
    make_whole(tmp_path / 'models' / 'whole', 'llava')
    write_lines(tmp_path / 'notes.jsonl')
    monkeypatch.chdir(tmp_path)
    for line in readme.split('```bash\n')[1].split('\n```')[0].splitlines():
        assert cli.main(shlex.split(line)[1:]) == 0, line
    assert AutoConfig.from_pretrained(tmp_path / 'models' / 'whole-small').text_config.intermediate_size == 16


def test_it_still_sees(tmp_path):
    make_whole(tmp_path / 'whole', 'llava')
    small = cut_text(tmp_path, tmp_path / 'whole', 'num_hidden_layers=1')
    out = tmp_path / 'out'
    assert cli.main(['text-part', str(tmp_path / 'whole'), '--put-back', str(small), '--output', str(out)]) == 0
    model = AutoModelForImageTextToText.from_pretrained(out)
    ids = IDS[:1].clone()
    ids[0, 2:6] = model.config.image_token_index  # an image of 16 x 16 is four patches
    with torch.no_grad():
        black, white = (model(input_ids=ids, pixel_values=torch.full((1, 3, 16, 16), x)).logits for x in (-1.0, 1.0))
    assert torch.equal(black[:, :2], white[:, :2]) and not torch.allclose(black[:, -1], white[:, -1], atol=1e-6)


def refusal(capsys, *arguments):
    assert cli.main(['text-part', *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_a_decoder_that_does_not_go_with_the_rest_is_refused(tmp_path, capsys):
    make_whole(tmp_path / 'whole', 'llava')
    small = cut_text(tmp_path, tmp_path / 'whole', 'hidden_size=8')
    out = ['--output', tmp_path / 'out']
    put = [tmp_path / 'whole', '--put-back']
    for pair in ([tmp_path / 'whole', '--put-back', tmp_path / 'no'], [tmp_path / 'no', '--put-back', small]):
        assert 'no is no Hugging Face model folder (no config.json there)' in refusal(capsys, *pair, *out)
    assert 'has hidden_size=8, the text part of' in refusal(capsys, *put, small, *out)
    shutil.copytree(tmp_path / 'text', tmp_path / 'turned')
    path = tmp_path / 'turned' / 'model.safetensors'
    tensors = load_file(path)
    tensors['model.embed_tokens.weight'] = tensors['model.embed_tokens.weight'].flip(1).contiguous()
    save_file(tensors, path, {'format': 'pt'})
    assert "its embedding is not the source's" in refusal(capsys, *put, tmp_path / 'turned', *out)
    del tensors['model.layers.1.mlp.up_proj.weight']
    save_file(tensors, path, {'format': 'pt'})
    assert 'missing: model.layers.1.mlp.up_proj.weight' in refusal(capsys, *put, tmp_path / 'turned', *out)
    assert 'exists already' in refusal(capsys, *put, tmp_path / 'text', '--output', small)
    assert 'is needed' in refusal(capsys, *put, tmp_path / 'text', '--output', tmp_path / 'text', '--overwrite')
    assert not (tmp_path / 'out').exists()
