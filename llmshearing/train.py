"""llm-foundry's training with our parts and clear errors.

``composer [-n N] llmshearing/train.py RUN.yaml [key=value ...]``

The same YAML runs under ``composer [-n N] -c llmfoundry train``; this script only prepares the process before Composer
is imported and turns an error in the configuration into one message instead of a traceback.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib.machinery import all_suffixes
from typing import Any

from llmshearing.compat.composer import had_begun
from llmshearing.config.process import prepare_process
from llmshearing.utils.files import NO_ROOM
from llmshearing.utils.paths import expand_path
from llmshearing.utils.suggestions import did_you_mean

__all__ = ['main']

REQUIRED = ('global_train_batch_size', 'model', 'tokenizer', 'optimizer', 'scheduler', 'train_loader')
USAGE = 'usage: composer [-n PROCESSES] llmshearing/train.py RUN.yaml [key=value ...]'


def main(argv: list[str] | None = None) -> int:
    """Trains. Returns 0 when done, 1 for a configuration that cannot run, 2 for wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help'):
        sys.stderr.write(USAGE + '\n')
        return 0 if argv else 2
    prepare_process()
    from llmfoundry.command_utils import train_from_yaml
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        train_from_yaml(argv[0], _checked_overrides(argv[0], argv[1:])).close()
    except (Exception, CheckpointException) as error:  # the second is no Exception
        problem = _explain(error)
        if problem is None or os.environ.get('LLMSHEARING_TRACEBACK'):
            raise
        sys.stderr.write(f'\nERROR: {problem}\n(set LLMSHEARING_TRACEBACK=1 to see where this was raised)\n')
        return 1
    return 0


def _explain(error: BaseException) -> str | None:
    """What a person needs to know of an error; None where that is its traceback."""
    import yaml
    from llmfoundry.utils.exceptions import BaseContextualError
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, UnsupportedInterpolationType
    from torch.distributed.checkpoint.api import CheckpointException

    full = next((link for link in _chain(error) if isinstance(link, OSError) and link.errno in NO_ROOM), None)
    if full is not None:  # PyTorch raises something else over it
        return (
            f'{full}. What was being written is not whole. Make room and begin again: with autoresume: true the run '
            'goes on from the checkpoint before.'
        )
    if isinstance(error, CheckpointException):  # of a sharded checkpoint, by rank
        return str(next(iter(error.failures.values()))[0])
    if isinstance(error, (InterpolationKeyError, UnsupportedInterpolationType)):  # llm-foundry takes oc.env away
        return (
            f'{error.full_key}: {str(error).splitlines()[0]}. ${{NAME}} is another key of the file; an environment '
            'variable is $NAME in a path, and KEY=$NAME on the command line anywhere.'
        )
    own = (ValueError, OSError, ImportError, FloatingPointError)
    own += (BaseContextualError, OmegaConfBaseException, yaml.YAMLError)
    is_about_the_file = isinstance(error, (OmegaConfBaseException, yaml.YAMLError))
    place = None if is_about_the_file else _foreign_place(error)
    if isinstance(error, own):
        return f'{place}: {error}' if place else str(error)
    if place is None:
        return None
    reasons = '; '.join(f'{type(one).__name__}: {one}' for one in (error, error.__cause__) if one is not None)
    return (
        f'{place} failed before the first batch ({reasons}). It is not a part of ours: look at the settings that it is '
        'given, and whether what they name can be reached.'
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those during whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _foreign_place(error: BaseException) -> str | None:
    """The module of another library that raised before training began; None for a fault of ours, or a later one.

    Our checks come first, so what is left are settings of parts that we do not know.
    """
    names = [frame.f_globals.get('__name__', '') for frame, _ in traceback.walk_tb(error.__traceback__)]
    passed_on = {'llmshearing.train', '__main__'}
    names = [n for n in names if n not in passed_on and n.partition('.')[0] not in sys.stdlib_module_names]
    is_ours = any(name.startswith('llmshearing.') for name in names)
    return None if had_begun(error) or is_ours or not names else names[-1]


def _checked_overrides(path: str, overrides: list[str]) -> list[str]:
    """Checks what llm-foundry takes for granted of a file, and returns what to tell it beside the file.

    It holds keys and values, keys are text, those which are read first are there, and the command line puts nothing
    else in the place of a section and names no variable that is not there.
    """
    from omegaconf import DictConfig, OmegaConf

    if not os.path.isfile(path):
        raise ValueError(f'{path}: there is no such YAML file.')
    try:
        content = OmegaConf.load(path)
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: {error}; save it as UTF-8.') from error
    if not isinstance(content, DictConfig) or not all(isinstance(key, str) for key in content):
        raise ValueError(f'{path}: expected keys and values at the top level, every key as text.')
    known = content.get('variables')
    for override in overrides:
        _check_variable(override, known, path)
        try:
            content = OmegaConf.merge(content, OmegaConf.from_cli([override]))
        except TypeError as error:
            raise ValueError(f'{override}: does not fit what {path} has there ({error}).') from error
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise ValueError(f'{path}: missing {", ".join(missing)}.')
    if 'code_paths' not in content:
        return overrides
    return [*overrides, f'code_paths={json.dumps(_code_files(OmegaConf.to_container(content, resolve=True)))}']


def _code_files(content: Any) -> list[str]:
    """The files under ``code_paths``, which llm-foundry imports before it hands the configuration to our checks."""
    paths = content['code_paths'] or []
    if not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
        raise ValueError(f'code_paths: expected a list of Python files, got {paths!r}.')
    files = [expand_path('code_paths', one) for one in paths]
    for file in files:
        if not os.path.isfile(file) or os.path.splitext(file)[1] not in all_suffixes():
            raise ValueError(f'code_paths: expected Python files, and {file} is none.')
    return files


def _check_variable(override: str, known: Any, path: str) -> None:
    """Refuses a variable that the file does not have, so that nothing in it could ask for it."""
    key = override.partition('=')[0].strip()
    name = key.removeprefix('variables.')
    names = list(known) if isinstance(known, Mapping) else []
    if name != key and name.partition('.')[0] not in names:
        possible = f'Possible: {", ".join(names)}.' if names else 'It has none.'
        raise ValueError(f'{override}: {path} has no variable {name!r}.{did_you_mean(name, names)} {possible}')


if __name__ == '__main__':
    sys.exit(main())
