"""``composer [-n N] llmshearing/train.py RUN.yaml [key=value ...]``: llm-foundry's training with our parts and clear errors.

The same YAML runs under ``composer [-n N] -c llmfoundry train``; this script only adds two defaults (FSDP2, no tokenizer
threads before forks) and turns an error in the configuration into one message instead of a traceback.
"""
from __future__ import annotations

import os
import sys

# Composer reads this when it builds the trainer. FSDP1 cannot shard on CPU and is not what the tests run.
os.environ.setdefault('FSDP_VERSION', '2')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

USAGE = 'usage: composer [-n PROCESSES] llmshearing/train.py RUN.yaml [key=value ...]'


def main(argv: list[str] | None = None) -> int:
    """Trains. Returns 0 when done, 1 for a configuration that cannot run, 2 for wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help'):
        sys.stderr.write(USAGE + '\n')
        return 0 if argv else 2
    from llmfoundry.command_utils import train_from_yaml
    from llmfoundry.utils.exceptions import BaseContextualError
    try:
        train_from_yaml(argv[0], argv[1:])
    except (ValueError, FileNotFoundError, BaseContextualError) as error:
        if os.environ.get('LLMSHEARING_TRACEBACK'):
            raise
        sys.stderr.write(f'\nERROR: {error}\n(set LLMSHEARING_TRACEBACK=1 to see where this was raised)\n')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
