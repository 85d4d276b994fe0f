"""``llmshearing COMMAND ...``: one entry point, one module per command.

Each command is a module of ``commands`` and has a ``main(argv)`` with its own argument parser; it is imported only when
it is called, so that ``llmshearing --help`` and the small commands start without importing torch.

What a user can mend is one line on stderr: a wrong value, a file that cannot be read or written, a remote store that
cannot be reached. The clients of the stores have exceptions of their own, and any of them may not be installed; one
that raised is imported, so the loaded modules are asked for them. Everything else is a fault of ours and keeps its
traceback.
"""

from __future__ import annotations

import importlib
import re
import sys

import yaml

from llmshearing.utils.paths import expand_path

__all__ = ['COMMANDS', 'main', 'store_errors', 'usage']

# command: (module with main(argv), one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    'cut': ('llmshearing.commands.cut', 'a smaller model in minutes: cut in one shot, compensated, compared'),
    'search': ('llmshearing.commands.search', 'which shape of a budget to ask for, by loss and by speed'),
    'train': ('llmshearing.commands.train', 'train as a YAML file says, on one process or several'),
    'init': ('llmshearing.commands.init', 'write the two YAMLs of a real run from source, data and hardware'),
    'plan': ('llmshearing.commands.plan', 'show source and target side by side: counts, cost, memory, warnings'),
    'prepare': ('llmshearing.commands.prepare', 'turn raw text into tokenized MDS splits, one folder per domain'),
    'export': ('llmshearing.commands.export', 'write a checkpoint as a stock Hugging Face folder'),
    'import': (
        'llmshearing.commands.import_legacy',
        'turn a first-generation Sheared LLaMA state dict into such a folder, or back',
    ),
    'text-part': ('llmshearing.commands.text_part', 'write the text part of a multimodal model as a plain decoder'),
    'rotate': (
        'llmshearing.commands.rotate',
        'turn a source into a basis in which its hidden dimensions are cheap to cut',
    ),
    'trim-vocab': (
        'llmshearing.commands.trim_vocab',
        'give a source fewer tokens: those that its text needs, with the same logits for them',
    ),
    'teach': (
        'llmshearing.commands.teach',
        "store a teacher's predictions beside prepared data, for distillation that does not run it",
    ),
    'demo': ('llmshearing.commands.demo', 'prune and continue a real 135M model on this machine'),
    'report': ('llmshearing.commands.report', 'one HTML page and pictures of a run, while it trains or afterwards'),
    'reference-losses': ('llmshearing.commands.reference_losses', 'measure or predict per-domain reference losses'),
    'budget': ('llmshearing.commands.budget', 'predict loss after pruning from a token budget (P2 law)'),
}

# Of the remote stores that Composer reads: module and base class of what their clients raise.
STORE_ERRORS = (
    ('botocore.exceptions', 'BotoCoreError'),
    ('botocore.exceptions', 'ClientError'),
    ('boto3.exceptions', 'Boto3Error'),
    ('google.auth.exceptions', 'GoogleAuthError'),
    ('google.api_core.exceptions', 'GoogleAPIError'),
    ('oci.exceptions', 'ClientError'),
    ('oci.exceptions', 'ServiceError'),
    ('azure.core.exceptions', 'AzureError'),
    ('paramiko.ssh_exception', 'SSHException'),
    ('composer.utils.object_store.object_store', 'ObjectStoreTransientError'),
    ('composer.utils.import_helpers', 'MissingConditionalImportError'),
    ('huggingface_hub.errors', 'StrictDataclassError'),  # a config that transformers 5 will not take
)


def store_errors() -> tuple[type[Exception], ...]:
    """The classes of :data:`STORE_ERRORS` whose modules are loaded."""
    return tuple(getattr(sys.modules[module], name) for module, name in STORE_ERRORS if module in sys.modules)


def usage() -> str:
    """What ``llmshearing --help`` prints: every command with a line on it."""
    width = max(map(len, COMMANDS))
    rows = '\n'.join(f'  {name:<{width}}  {text}' for name, (_, text) in COMMANDS.items())
    return f'usage: llmshearing COMMAND [options]\n\ncommands:\n{rows}\n\nllmshearing COMMAND --help tells the options.'


def expand_argument(argument: str) -> str:
    """An argument with what a shell replaces in a path, which it leaves as it is in quotes and behind ``--out=``.

    What stands behind a key of a YAML is read with it.

    Raises:
        ValueError: As :func:`llmshearing.utils.paths.expand_path`.
    """
    if re.match(r'[\w.]+=', argument):
        return argument
    option, equals, value = argument.partition('=') if argument.startswith('-') else ('', '', argument)
    return f'{option}{equals}{expand_path(option or "argument", value)}'


def main(argv: list[str] | None = None) -> int:
    """Runs a command. Returns 0 when done, 1 on a user's error (one line on stderr), 2 on wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help'):
        sys.stdout.write(usage() + '\n')
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        sys.stderr.write(f'llmshearing: unknown command {argv[0]!r}; one of: {", ".join(COMMANDS)}\n')
        return 2
    module = importlib.import_module(COMMANDS[argv[0]][0])
    try:
        return module.main([expand_argument(argument) for argument in argv[1:]]) or 0
    except (ValueError, OSError, yaml.YAMLError) as error:
        problem = str(error) or type(error).__name__
    except store_errors() as error:  # the clients do not say which address it was
        addresses = [argument for argument in argv[1:] if '://' in argument]
        problem = ': '.join([*addresses, str(error) or type(error).__name__])
    sys.stderr.write(f'llmshearing {argv[0]}: {problem}\n')
    return 1


if __name__ == '__main__':
    sys.exit(main())
