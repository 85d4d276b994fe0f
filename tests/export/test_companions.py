"""What a folder made from a source has of it besides weights and config."""

from llmshearing.compat.transformers import read_tokenizer
from llmshearing.export.companions import copy_companions
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
