"""A tokenizer survives a sharded checkpoint and is written so that either generation of transformers opens it."""

import json

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmshearing.checkpoints.shards import load_stored_shards
from llmshearing.checkpoints.tokenizer_files import write_tokenizer, write_tokenizer_files
from llmshearing.compat.transformers import read_tokenizer
from llmshearing.models.source_files import read_source_files
from tests.checkpoints.test_lazy_tensors import save_shards
from tests.tiny_run import tiny_tokenizer


def as_composer_keeps_it(folder):
    return {
        path.name: {'file_extension': path.suffix, 'content': json.loads(path.read_text())}
        for path in folder.glob('*.json')
    }


@pytest.mark.parametrize('in_sequence', [False, True])
def test_a_template_without_special_tokens_survives_a_sharded_checkpoint(in_sequence, tmp_path):
    tokenizer = tiny_tokenizer()
    template = processors.TemplateProcessing(single='$A', special_tokens=[])
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([template]) if in_sequence else template
    tokenizer.save_pretrained(tmp_path / 'source')
    assert '"special_tokens": {}' in (tmp_path / 'source' / 'tokenizer.json').read_text()
    files = as_composer_keeps_it(tmp_path / 'source')
    (tmp_path / 'out').mkdir()
    stored = load_stored_shards(save_shards({'integrations': files}, tmp_path / 'shards'), ('integrations',))
    write_tokenizer(stored['integrations'], tmp_path / 'out', {})
    assert read_tokenizer(tmp_path / 'out')('w3 w17').input_ids == tokenizer('w3 w17').input_ids


def test_a_tokenizer_of_transformers_5_is_written_for_both(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    files = as_composer_keeps_it(tmp_path)
    settings = files['tokenizer_config.json']['content']
    settings |= {'tokenizer_class': 'TokenizersBackend', 'backend': 'tokenizers', 'extra_special_tokens': ['w5']}
    settings |= {'local_files_only': True, 'token': 'hf_x', 'cache_dir': '/home/x', 'is_local': True}
    (tmp_path / 'out').mkdir()
    write_tokenizer_files(files, tmp_path / 'out')
    written = json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())
    assert written['tokenizer_class'] == 'PreTrainedTokenizerFast' and written['additional_special_tokens'] == ['w5']
    assert not {'backend', 'extra_special_tokens', 'local_files_only', 'token', 'cache_dir', 'is_local'} & set(written)
    opened = PreTrainedTokenizerFast.from_pretrained(tmp_path / 'out')
    assert opened('w3 w17').input_ids == tiny_tokenizer()('w3 w17').input_ids and 'w5' in opened.all_special_tokens


def test_special_tokens_that_only_their_own_file_names(tmp_path):
    """As in folders of 2023. transformers 5 reads that file, and writes none into a checkpoint."""
    source = tmp_path / 'source'
    tiny_tokenizer().save_pretrained(source)
    path = source / 'tokenizer_config.json'
    settings = json.loads(path.read_text())
    for key in ('eos_token', 'pad_token', 'added_tokens_decoder'):
        settings.pop(key, None)
    path.write_text(json.dumps(settings))
    (source / 'special_tokens_map.json').write_text('{"eos_token": "w5", "pad_token": "</s>"}')
    opened = read_tokenizer(source)
    assert (opened.eos_token, opened.pad_token) == ('w5', '</s>')
    opened.save_pretrained(tmp_path / 'in_checkpoint')
    (tmp_path / 'out').mkdir()
    write_tokenizer(as_composer_keeps_it(tmp_path / 'in_checkpoint'), tmp_path / 'out', read_source_files(str(source)))
    written = AutoTokenizer.from_pretrained(tmp_path / 'out')
    assert written.special_tokens_map == opened.special_tokens_map


def test_a_tokenizer_that_does_not_open_is_refused(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    files = as_composer_keeps_it(tmp_path)
    files['tokenizer.json']['content']['model'] = {'type': 'Unheard'}
    (tmp_path / 'out').mkdir()
    with pytest.raises(ValueError, match='the written tokenizer does not open .*--tokenizer'):
        write_tokenizer(files, tmp_path / 'out', {})


def test_named_chat_templates_are_written_for_both(tmp_path):
    tokenizer, templates = tiny_tokenizer(), {'default': '{{ messages }}', 'rag': '{{ documents }}'}
    tokenizer.chat_template = templates
    write_tokenizer(tokenizer, tmp_path, {})
    stored = json.loads((tmp_path / 'tokenizer_config.json').read_text())['chat_template']
    assert {one['name']: one['template'] for one in stored} == templates  # where transformers 4 looks for them
    assert read_tokenizer(tmp_path).chat_template == templates
