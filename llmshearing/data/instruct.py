"""Instruction tuning as in Sheared LLaMA's Appendix E: the first round of each conversation behind one fixed prompt.

llm-foundry's finetuning loader takes the function below by name
(``preprocessing_fn: llmshearing.data.instruct:first_round``), so conversations stay on disk as they were published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.data.turns import content_of, role_of

__all__ = ['PROMPT', 'first_round']

PROMPT = (
    'You are a helpful assistant. Write a response that appropriately completes the request.\n\n'
    '### Input:\n{input}\n\n### Response:'
)


def first_round(example: Mapping[str, Any]) -> dict[str, str]:
    """The first request and its answer, as llm-foundry's loader expects them.

    Args:
        example (Mapping[str, Any]): ShareGPT's format, ``{"conversations": [{"from": "human", "value": ...}, ...]}``;
            its newer spelling ``{"messages": [{"role": "user", "content": ...}, ...]}``; or
            ``{"prompt": ..., "response": ...}``.

    Returns:
        dict[str, str]: ``prompt`` and ``response``.

    Raises:
        ValueError: If there is no request followed by an answer, naming the keys that were found.
    """
    if example.get('prompt') is not None and example.get('response') is not None:
        return _pair(example['prompt'], example['response'])
    turns = example.get('conversations') or example.get('messages')
    if not turns:
        raise ValueError(
            f'an example has keys {sorted(example)}; expected conversations, messages, or prompt and response.'
        )
    roles = [role_of(turn) for turn in turns]
    for number, (speaker, answering) in enumerate(zip(roles, roles[1:])):
        if (speaker, answering) == ('user', 'assistant'):
            return _pair(content_of(turns[number]), content_of(turns[number + 1]))
    raise ValueError(f'a conversation of {roles} has no request that is followed by an answer.')


def _pair(request: Any, response: Any) -> dict[str, str]:
    if not isinstance(request, str) or not isinstance(response, str):
        raise ValueError(f'a request and its answer are {request!r:.100} and {response!r:.100}, expected text.')
    return {'prompt': PROMPT.format(input=request), 'response': response}
