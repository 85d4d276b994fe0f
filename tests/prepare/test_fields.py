"""Fields inside fields, and conversations as the tokenizer's own template writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from llmshearing.prepare import worker
from llmshearing.prepare.fields import MISSING, ChatTemplate, NoChatTemplate, field_names, find_field
from llmshearing.prepare.pieces import Piece
from llmshearing.prepare.pipeline import prepare
from llmshearing.prepare.tokenizer import plan_tokenizer
from tests.prepare.prepare_inputs import make_documents, make_tokenizer, read_tokens

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
)
TURNS = [{'role': 'user', 'content': 'why'}, {'role': 'assistant', 'content': 'so'}]


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
    """A tokenizer with a chat template."""
    name = make_tokenizer(tmp_path_factory.mktemp('chat'))
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(name)
    return name


def read(tokenizer, *records, key='messages', spelled=None):
    """What a worker makes of some records."""
    worker.start(plan_tokenizer(tokenizer, None, None))
    lines = ''.join(json.dumps(record) + '\n' for record in records).encode()
    return list(worker.read_documents(Piece('json', 'a.jsonl', 1, lines, len(lines)), key, None, spelled))


def test_what_is_said_is_text(chat):
    parts = [{'type': 'text', 'text': 'wh'}, {'type': 'text', 'text': 'y'}]
    template = ChatTemplate(chat, bos=True, eos=True)
    assert template.render([{'role': 'user', 'content': parts}, TURNS[1]]) == '[user] why</s>\n[assistant] so'
    for content in ({}, None, 7, [{'type': 'image'}], []):
        with pytest.raises(ValueError, match='the content of a turn of the conversation is .*, expected text'):
            template.render([TURNS[0], {'role': 'assistant', 'content': content}])
    calls = [{'role': 'assistant', 'content': None, 'tool_calls': [{'name': 'f'}]}]
    assert template.render(calls).startswith('[assistant]')  # the rest is the template's


def test_a_template_that_writes_the_date_writes_the_same_every_day(chat, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat)
    named = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE
    held = "{% set form = '%A %-d %B %Y' %}{{ strftime_now(form) }}" + TEMPLATE
    long = 'Friday 26 July 2024'
    for written, day in ((named, '26 Jul 2024'), (held, long), ({'default': held}, long)):
        tokenizer.chat_template = written
        tokenizer.save_pretrained(tmp_path)
        assert ChatTemplate(str(tmp_path), bos=False, eos=True).render(TURNS[:1]) == f'{day}<s>[user] why'


def test_fields_inside_fields():
    record = {'a': {'b': {'c': 1}, 'b.c': 2}, 'a.b': {'c': 3}, 'd': [4]}
    found = {key: find_field(record, key) for key in ('a.b.c', 'a.b', 'd', 'a.x', 'd.0', 'x')}
    assert found == {'a.b.c': 2, 'a.b': {'c': 3}, 'd': [4], 'a.x': MISSING, 'd.0': MISSING, 'x': MISSING}
    assert find_field({'a': {'b': {'c': 1}}}, 'a.b.c') == 1
    assert find_field({'a.b': {'c': 3}}, 'a.b.c') == 3
    assert field_names({'a': {'b': 1}, 'c': 2}) == ['a', 'a.b', 'c']


@pytest.mark.parametrize(
    'turns', [TURNS, [{'from': 'human', 'value': 'why'}, {'from': 'gpt', 'value': 'so', 'weight': None}]]
)
def test_a_conversation_is_what_the_tokenizer_makes_of_it(chat, turns):
    whole = AutoTokenizer.from_pretrained(chat).apply_chat_template(TURNS, tokenize=False)
    assert whole == '<s>[user] why</s>\n[assistant] so</s>\n'
    assert ChatTemplate(chat, bos=False, eos=False).render(turns) == whole
    # What stands around every document anyway is not there twice.
    assert ChatTemplate(chat, bos=True, eos=True).render(turns) == '[user] why</s>\n[assistant] so'


@pytest.mark.parametrize(
    ('turns', 'words'),
    [
        (['why'], 'the text is a list of 1, neither a string nor a conversation'),
        ([{'content': 'why'}], 'expected role and content'),
        (['why', 'so'], 'the text is a list of 2, neither a string nor a conversation'),
        ([{'role': 'tool', 'content': 'x'}], 'the chat template refuses the conversation (no tools)'),
    ],
)
def test_turns_that_are_none(chat, turns, words):
    """One such record is a bad one among others."""
    bad, good = read(chat, {'messages': turns}, {'messages': TURNS})
    assert words in bad.reason and good[0].startswith('<s>[user] why')


def test_a_turn_that_the_template_leaves_out_is_a_bad_record(chat, tmp_path):
    """Templates pass over roles that they do not know, such as OpenAssistant's `prompter`."""
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[u] {{ m['content'] | tojson }}\n"
        "{% elif m['role'] == 'assistant' %}[a] {{ m['content'].split('</think>')[-1] }}\n{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path)
    said = [{'role': 'user', 'content': 'why "so"'}, {'role': 'assistant', 'content': '<think>hm</think>so'}]
    bad, (good, _) = read(
        str(tmp_path), {'messages': [{'role': 'prompter', 'content': 'why'}, *said]}, {'messages': said}
    )
    assert bad.reason == "the chat template leaves out what 'prompter' says; use roles that it knows"
    assert good == '[u] "why \\"so\\""\n[a] so\n'


def test_turns_in_a_string_are_read_where_the_field_is_named_for_them(chat):
    record = {'messages': json.dumps(TURNS), 'text': json.dumps(TURNS)}
    ((rendered, _),) = read(chat, record)
    ((plain, _),) = read(chat, record, key='text')
    assert rendered.startswith('<s>[user] why') and plain == record['text']


def test_a_tokenizer_without_a_template(chat, tmp_path):
    with pytest.raises(NoChatTemplate, match='is a conversation, and tokenizer .* has no chat template'):
        ChatTemplate(make_tokenizer(tmp_path), bos=True, eos=True)


def test_prepare_writes_conversations(chat, tmp_path):
    texts = make_documents(40, 4)
    conversations = [[{'role': 'user', 'content': text}, *TURNS[1:]] for text in texts]
    (tmp_path / 'c.jsonl').write_text(''.join(json.dumps({'data': {'messages': c}}) + '\n' for c in conversations))
    manifest = prepare(
        {
            'tokenizer': chat,
            'max_seq_len': 32,
            'out': str(tmp_path / 'out'),
            'domains': {'c': {'path': str(tmp_path / 'c.jsonl'), 'text_key': 'data.messages'}},
            'splits': {'continue': {}},
            'bos': True,
        },
        workers=1,
    )
    tokenizer = AutoTokenizer.from_pretrained(chat)
    ids = np.concatenate(
        [tokenizer(tokenizer.apply_chat_template(c, tokenize=False))['input_ids'] for c in conversations]
    )
    assert manifest['domains']['c']['documents'] == 40
    assert np.array_equal(np.concatenate(read_tokens(Path(tmp_path, 'out/continue/c'))), ids[: len(ids) // 32 * 32])


def test_the_next_tokenizer_writes_by_its_own_template(chat, tmp_path):
    other = AutoTokenizer.from_pretrained(chat)
    other.chat_template = "{% for turn in messages %}<{{ turn['role'] }}> {{ turn['content'] }}\n{% endfor %}"
    other.save_pretrained(tmp_path)
    rendered = []
    for name in (chat, str(tmp_path)):
        ((text, _),) = read(name, {'messages': TURNS})
        whole = AutoTokenizer.from_pretrained(name).apply_chat_template(TURNS, tokenize=False)
        assert whole.startswith(text)  # without the end token, which is put there when it is packed
        rendered.append(text)
    assert rendered[0] != rendered[1]


def test_special_tokens_spelled_in_a_turn_are_told_apart_from_those_of_the_template(chat):
    said = [{'role': 'user', 'content': 'what is </s> for'}]
    spelled = []
    texts = [text for text, _ in read(chat, {'messages': TURNS}, {'messages': said}, spelled=spelled)]
    assert ['</s>' in text for text in texts] == [True, True]
    assert spelled == [('a.jsonl', 2, '</s>')]
