"""Instruction tuning as in Sheared LLaMA's Appendix E: the first round of each conversation behind one fixed prompt.

llm-foundry's finetuning loader takes the function below by name
(``preprocessing_fn: llmshearing.data.instruct:first_round``), so conversations stay on disk as they were published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ['PROMPT', 'first_round']

PROMPT = (
    'You are a helpful assistant. Write a response that appropriately completes the request.\n\n'
    '### Input:\n{input}\n\n### Response:'
)
USER_NAMES, ASSISTANT_NAMES = ('human', 'user'), ('gpt', 'assistant', 'chatgpt', 'bard', 'bing')


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
    if 'prompt' in example and 'response' in example:
        return _pair(example['prompt'], example['response'])
    turns = example.get('conversations') or example.get('messages')
    if not turns:
        raise ValueError(
            f'an example has keys {sorted(example)}; expected conversations, messages, or prompt and response.'
        )
    turns = [(turn.get('from', turn.get('role')), turn.get('value', turn.get('content'))) for turn in turns]
    for (speaker, request), (answering, response) in zip(turns, turns[1:]):
        if speaker in USER_NAMES and answering in ASSISTANT_NAMES:
            return _pair(request, response)
    raise ValueError(
        f'a conversation of {[speaker for speaker, _ in turns]} has no request that is followed by an answer.'
    )


def _pair(request: str, response: str) -> dict[str, str]:
    return {'prompt': PROMPT.format(input=request), 'response': response}
