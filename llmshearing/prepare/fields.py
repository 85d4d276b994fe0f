"""The text of a record: a field, a field inside a field, or a conversation by the tokenizer's template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from llmshearing.compat.transformers import read_tokenizer
from llmshearing.data.turns import content_of, role_of

__all__ = [
    'BESIDE_TURNS',
    'CONVERSATIONS',
    'MISSING',
    'ChatTemplate',
    'NoChatTemplate',
    'field_names',
    'find_field',
    'parse_conversation',
]

MISSING = object()
CONVERSATIONS = ('messages', 'conversations', 'conversation')  # usual names of fields with turns
BESIDE_TURNS = ('system', 'tools')  # fields in which some write what a conversation begins with
TODAY = datetime.date(2024, 7, 26)  # for templates that write the date: the same text whenever it is prepared
# What a format of strftime is made of; a hyphen leaves out the leading zero.
_DIRECTIVES = [f'%-{letter}' for letter in 'dHIjmMS'] + [f'%{letter}' for letter in 'aAbBcdeFGHIjmMpSTuUVwWxXyY']


def find_field(record: Any, key: str) -> Any:
    """The value under ``key``: of that very name, or with dots, inside other fields (``meta.text``).

    Returns:
        Any: The value, or ``MISSING``.
    """
    if not isinstance(record, Mapping):
        return MISSING
    if key in record:
        return record[key]
    outer, dot, inner = key.partition('.')
    while dot:
        if outer in record and (found := find_field(record[outer], inner)) is not MISSING:
            return found
        more, dot, inner = inner.partition('.')
        outer = f'{outer}.{more}'
    return MISSING


def field_names(record: Mapping[str, Any], prefix: str = '') -> list[str]:
    """Names of the fields as ``text_key`` takes them, those inside others too."""
    names = []
    for name, value in record.items():
        names.append(f'{prefix}{name}')
        if isinstance(value, Mapping) and prefix.count('.') < 2:
            names += field_names(value, f'{prefix}{name}.')
    return names


def parse_conversation(text: str) -> str | list[Any]:
    """The turns that a string holds as JSON, as some tables have them; the string itself where it holds none."""
    try:
        turns = json.loads(text)
    except ValueError:
        return text
    return turns if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) for turn in turns) else text


class NoChatTemplate(ValueError):
    """There are conversations, and nothing that says how they are written."""


def _dated(template: Any) -> Any:
    """A template in which :data:`TODAY` is today; None where it writes no date. Of several, that for plain turns."""
    template = template.get('default') if isinstance(template, Mapping) else template
    if not template or 'strftime_now' not in template:
        return None
    filled = ''.join(f'|replace({each!r}, {TODAY.strftime(each)!r})' for each in _DIRECTIVES)
    return f'{{%- macro strftime_now(form) -%}}{{{{ form{filled} }}}}{{%- endmacro -%}}{template}'


class ChatTemplate:
    """Renders conversations as the tokenizer's own template does.

    Args:
        name (str): What ``AutoTokenizer`` loads.
        bos (bool): The beginning token is put before each document anyway, so not by the template.
        eos (bool): The same for the end token.

    Raises:
        NoChatTemplate: If the tokenizer has none.
    """

    def __init__(self, name: str, bos: bool, eos: bool) -> None:
        self._tokenizer = read_tokenizer(name)
        if not self._tokenizer.chat_template:
            raise NoChatTemplate(
                f'the text is a conversation, and tokenizer {name!r} has no chat template to write it with; use a '
                'tokenizer that has one, or name a field with plain text in text_key'
            )
        self._template = _dated(self._tokenizer.chat_template)
        self._bos = self._tokenizer.bos_token if bos else None
        self._eos = self._tokenizer.eos_token if eos else None
        self._written: set[str] = set()  # roles that the template is known to write

    def render(self, turns: list[Any]) -> str:
        """The text of a conversation.

        Args:
            turns (list): Mappings with ``role`` and ``content``, or in ShareGPT's spelling ``from`` and ``value``.

        Raises:
            ValueError: If they are none, or the template refuses them or leaves one out, as it does with roles that it
                does not know.
        """
        messages = []
        for turn in turns:
            role = role_of(turn)
            others = {key: value for key, value in turn.items() if key not in ('from', 'value') and value is not None}
            messages.append({**others, 'role': role, 'content': content_of(turn)})
        text = self._write(messages)
        for number, message in enumerate(messages):
            role, said = message['role'], (message['content'] or '').strip()
            if not said or (role in self._written and said in text):
                continue
            # A template may write a turn in other words, as JSON or without its thoughts, but not as if it were empty.
            if self._write(_with_content(messages, number, f'{said}.')) == text:
                raise ValueError(f'the chat template leaves out what {role!r} says; use roles that it knows')
            self._written.add(role)
        if self._bos:
            text = text.removeprefix(self._bos)
        if self._eos and text.rstrip().endswith(self._eos):
            text = text.rstrip().removesuffix(self._eos)
        return text

    def _write(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self._tokenizer.apply_chat_template(messages, chat_template=self._template, tokenize=False)
        except Exception as error:  # jinja2 has its own kinds, and templates raise what they like
            raise ValueError(f'the chat template refuses the conversation ({error})') from error


def _with_content(messages: list[dict[str, Any]], number: int, content: str) -> list[dict[str, Any]]:
    return [{**turn, 'content': content} if at == number else turn for at, turn in enumerate(messages)]
