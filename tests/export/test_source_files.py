"""Small files of a source are read before the first batch, and what an export cannot use of them is left out."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmshearing.export.model_folder import exported_config, write_model_folder
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.models.cutting import CutPlan
from llmshearing.models.families import family_of
from llmshearing.models.shapes import shape_of
from llmshearing.models.source_files import read_source_files, source_licence
from tests.models.tiny import tiny_model


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('generation_config.json', '{', "the source's generation_config.json cannot be read"),
        ('generation_config.json', '[]', "the source's generation_config.json cannot be read"),
        ('README.md', '---\nlicense: [mit\n---\n', "front matter of the source's README.md, .* is not YAML"),
    ],
)
def test_files_that_cannot_be_read_are_named_at_once(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_source_files(str(tmp_path))


def test_generation_settings_of_an_older_config_are_kept(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / 'generation_config.json').unlink(missing_ok=True)
    content = json.loads((tmp_path / 'config.json').read_text())
    settings = {'do_sample': True, 'temperature': 0.6, 'eos_token_id': [2, 17]}
    (tmp_path / 'config.json').write_text(json.dumps({**content, **settings}))
    files = read_source_files(str(tmp_path))
    model = tiny_model()
    with ModelFolderWriter(tmp_path / 'out') as writer:
        write_model_folder(writer, model.config, model.named_parameters(), None, files, None)
        writer.commit()
    expected, got = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path, tmp_path / 'out'))
    for name, value in settings.items():
        assert getattr(got.generation_config, name) == getattr(expected.generation_config, name) == value


@pytest.mark.parametrize(
    'written', [str.encode, lambda text: text.replace('\n', '\r\n').encode('utf-8-sig')], ids=['here', 'on Windows']
)
def test_licence_files_and_languages_as_they_are_written(tmp_path, written):
    card = '---\nlicense: mit\nlicense_link:\nlanguage: [no, en]\n---\n# x\n'
    (tmp_path / 'README.md').write_bytes(written(card))
    (tmp_path / 'LICENSE').write_bytes('© 2019 Müller'.encode('latin-1'))
    files = read_source_files(str(tmp_path))
    assert files['LICENSE'] == '© 2019 Müller'
    assert source_licence(files) == {'license': 'mit', 'language': ['no', 'en']}


def test_a_padding_token_below_zero_is_left_out(tmp_path):
    model = tiny_model()
    settings = {'pad_token_id': -1, 'eos_token_id': [2, 17], 'bos_token_id': 1}
    (tmp_path / 'generation_config.json').write_text(json.dumps(settings))
    files = read_source_files(str(tmp_path))
    with ModelFolderWriter(tmp_path / 'out') as writer:
        write_model_folder(writer, model.config, model.named_parameters(), None, files, None)
        writer.commit()
    assert json.loads((tmp_path / 'out' / 'generation_config.json').read_text()).get('pad_token_id') is None
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
    assert opened.generation_config.eos_token_id == [2, 17]


def test_code_of_the_source_is_not_named_by_an_export(tmp_path):
    model = tiny_model()
    model.config.auto_map = {'AutoConfig': 'configuration_tiny.TinyConfig'}
    plan = CutPlan(family_of(model.config), shape_of(model.config), {})
    exported_config(model.config, plan, torch.float32).save_pretrained(tmp_path)
    assert 'auto_map' not in json.loads((tmp_path / 'config.json').read_text())
    assert model.config.auto_map
