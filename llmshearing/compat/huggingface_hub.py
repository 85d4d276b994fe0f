"""huggingface_hub 0.x and 1.0 onward: the command that people log in and upload with."""

from __future__ import annotations

from llmshearing.compat.versions import major_version

__all__ = ['HUB_COMMAND', 'LOGIN_COMMAND']

HUB_COMMAND = 'hf' if major_version('huggingface_hub') >= 1 else 'huggingface-cli'
LOGIN_COMMAND = 'hf auth login' if HUB_COMMAND == 'hf' else 'huggingface-cli login'
