"""What a folder made from a source has of it besides weights, and in which words its config says it."""

import json
import re
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

import llmshearing
from llmshearing.checkpoints.rotated import has_learned_basis
from llmshearing.compat.configs import dump_config
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.export.companions import copy_companions
from llmshearing.rotation.folder import write_config
from llmshearing.vocabulary.settings import read_kept
from tests.tiny_run import tiny_tokenizer


def test_every_chat_template_is_copied_and_no_code(tmp_path):
    source, out = tmp_path / 'source', tmp_path / 'out'
    tokenizer, templates = tiny_tokenizer(), {'default': '{{ messages }}', 'rag': '{{ documents }}'}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(source)
    (source / 'tokenization_tiny.py').write_text('')
    out.mkdir()
    copy_companions(source, out)
    assert read_tokenizer(out).chat_template == templates
    assert not list(out.rglob('*.py'))


def test_what_was_done_to_the_source_is_known_of_what_is_made_from_it(tmp_path):
    """A trimmed source that is rotated is still one to name with --like; a rotated one that is trimmed, rotated."""
    source, out = tmp_path / 'source', tmp_path / 'out'
    source.mkdir()
    out.mkdir()
    (source / 'rotation.json').write_text('{"learned": {"steps": 30}}')
    (source / 'vocabulary.json').write_text(json.dumps({'kept': [0, 2], 'source_vocabulary': 'abc'}))
    copy_companions(source, out)
    assert has_learned_basis(out) and read_kept(out, 'abc') == [0, 2]


NEWER = {'model_type': 'llama', 'rope_parameters': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 5e5}}
OLDER = {'rope_theta': 5e5, 'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}, 'torch_dtype': 'float32'}


def test_a_rotated_config_says_it_in_the_words_of_both(tmp_path):
    write_config({**NEWER, 'dtype': 'float32'}, True, torch.float32, tmp_path)
    assert OLDER.items() <= json.loads((tmp_path / 'config.json').read_text()).items()


def test_a_text_part_says_it_in_the_words_of_both(tmp_path):
    dump_config({'model_type': 'whole', 'text_config': {**NEWER, 'dtype': 'float32'}}, tmp_path / 'config.json')
    assert OLDER.items() <= json.loads((tmp_path / 'config.json').read_text())['text_config'].items()


def test_every_config_is_written_in_one_place():
    """What writes one by itself forgets the older names, and transformers 4 computes another model without a word."""
    package = Path(llmshearing.__file__).parent
    alone = re.compile(r"(?:dump_json|write_text|write_atomically)\([^\n]*'config\.json'")
    assert not [str(path) for path in package.rglob('*.py') if alone.search(path.read_text())]
    saved = [path.name for path in package.rglob('*.py') if 'config.save_pretrained(' in path.read_text()]
    assert saved == ['model_folder.py'], 'followed there by add_older_names'


def test_tokenizer_settings_of_transformers_5_are_copied_for_both(tmp_path):
    source, out = tmp_path / 'source', tmp_path / 'out'
    tiny_tokenizer().save_pretrained(source)
    settings = json.loads((source / 'tokenizer_config.json').read_text())
    settings |= {'tokenizer_class': 'TokenizersBackend', 'backend': 'tokenizers', 'extra_special_tokens': ['w5']}
    (source / 'tokenizer_config.json').write_text(json.dumps(settings))
    out.mkdir()
    copy_companions(source, out)
    opened = PreTrainedTokenizerFast.from_pretrained(out)
    assert 'w5' in opened.all_special_tokens
    assert json.loads((out / 'tokenizer_config.json').read_text())['tokenizer_class'] == 'PreTrainedTokenizerFast'
