"""The turns of a conversation, in either of the two usual spellings: role and content, or ShareGPT's from and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ['content_of', 'role_of', 'turns_of_columns']

_ROLES = {'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant', 'bing': 'assistant', 'bard': 'assistant'}


def role_of(turn: Any) -> str:
    """Who speaks: ``user``, ``assistant`` or another name as it stands.

    Raises:
        ValueError: If it is no turn.
    """
    role: Any = turn.get('role', turn.get('from')) if isinstance(turn, Mapping) else None
    if not isinstance(role, str):
        raise ValueError(f'a turn of the conversation is {turn!r}, expected role and content')
    return _ROLES.get(role, role)


def content_of(turn: Mapping[str, Any]) -> str | None:
    """What is said, its parts of text joined; None in a turn that calls tools and says nothing.

    Raises:
        ValueError: If that is no text.
    """
    content = turn.get('content', turn.get('value'))
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        return ''.join(part['text'] for part in content)
    if isinstance(content, str) or (content is None and turn.get('tool_calls')):
        return content
    raise ValueError(f'the content of a turn of the conversation is {content!r:.100}, expected text')


def turns_of_columns(record: Mapping[str, Any]) -> Mapping[str, Any] | list[dict[str, Any]]:
    """The turns of a conversation with a list for each key, as the datasets library stores some; else the record."""
    columns = list(record.values())
    is_conversation = ('role' in record or 'from' in record) and all(isinstance(column, list) for column in columns)
    if not is_conversation or len({len(column) for column in columns}) != 1:
        return record
    return [dict(zip(record, turn)) for turn in zip(*columns)]


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get('text'), str)
