"""Secrets do not belong in a run's configuration: it is printed, sent to loggers and kept in checkpoints.

Every service that a run may use reads its key from the environment or from a login file, so a key in a YAML is refused,
and what it holds is not repeated in the message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmshearing.config.tree import walk

__all__ = ['check_no_secrets', 'find_secrets']

SECRET_KEY = re.compile(
    r'(^|_)(api_?key|secret|secret_key|access_key|access_key_id|secret_access_key|session_token|auth_token|'
    r'access_token|hf_token|bearer_token|token|password|passwd|passphrase|credentials?|private_key)$',
    re.IGNORECASE,
)
# Names that end in "token" and are settings of text.
TOKEN_SETTINGS = re.compile(
    r'(^|_)(bos|eos|pad|unk|sep|cls|mask|special|additional|image|prompt|start|end|stop|eod|eot|prefix|suffix|middle)_token$'
)
# Keys of Weights & Biases, and of commits.
FORTY_HEX = re.compile(r'^[0-9a-f]{40}$')
COMMIT_KEY = re.compile(r'(^|_)(revision|commit|rev|sha1?|hash)$', re.IGNORECASE)
# Keys of Hugging Face, Amazon, GitHub and OpenAI, and addresses with a password.
SECRET_VALUE = re.compile(
    r'^(hf_[A-Za-z0-9]{30,}|(AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{30,}|'
    r'[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s@]+@.*)$'
)
REMEDY = {'wandb': 'WANDB_API_KEY', 'mlflow': 'MLFLOW_TRACKING_TOKEN', 'model': 'HF_TOKEN', 'tokenizer': 'HF_TOKEN'}


def check_no_secrets(config: Mapping[str, Any]) -> None:
    """Refuses a configuration that holds a key, token or password.

    Raises:
        ValueError: Naming where, never what.
    """
    found = list(find_secrets(config))
    if found:
        variables = sorted({name for place in found for part, name in REMEDY.items() if part in place.split('.')})
        hint = f' (here {" and ".join(variables)})' if variables else ''
        raise ValueError(
            f'{", ".join(found)}: this looks like a secret. A configuration is printed, logged and '
            f"kept in checkpoints; remove it, and set the service's environment variable{hint} or log "
            'in on this machine instead.'
        )


def find_secrets(tree: Any) -> Iterator[str]:
    """Dotted places of values that look like secrets."""
    for entry in walk(tree):
        key, value = str(entry.key), entry.value
        if not isinstance(value, str):
            continue
        is_named = value and SECRET_KEY.search(key) and not TOKEN_SETTINGS.search(key)
        is_commit = COMMIT_KEY.search(key)
        if is_named or SECRET_VALUE.match(value) or (FORTY_HEX.match(value) and not is_commit):
            yield entry.shown
