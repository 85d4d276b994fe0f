"""What commands have in common: options as settings, targets and counts as people write them, lines with the time."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from llmshearing.utils.numbers import parse_count, parse_size

__all__ = [
    'LIST',
    'command_parser',
    'count_argument',
    'parse_pairs',
    'parse_target',
    'settings_from',
    'size_argument',
    'timed_report',
]

Settings = TypeVar('Settings')

LIST: dict[str, Any] = {'nargs': '+', 'action': 'extend'}  # for options of one or more words: given again, they add up


def command_parser(command: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of a command, whose help shows the text with its lines as they are."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f'llmshearing {command}', description=text, formatter_class=raw)


def settings_from(kind: Callable[..., Settings], arguments: argparse.Namespace, **given: Any) -> Settings:
    """Settings, each as the option of its name says; without such an option it keeps its default.

    Args:
        kind (Callable): Dataclass of the settings.
        arguments (argparse.Namespace): The options.
        **given (Any): Settings that are not what an option says as it stands.
    """
    named = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in vars(arguments).items() if name in named} | given)


def count_argument(text: str) -> float:
    """:func:`~llmshearing.utils.numbers.parse_count` as an argparse type, which keeps its message."""
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def size_argument(text: str) -> int:
    """:func:`~llmshearing.utils.numbers.parse_size` in the same way."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_pairs(option: str, items: list[str], expected: str = 'KEY=VALUE, each key once') -> dict[str, str]:
    """``['hidden_size=2048']`` as a mapping of text.

    Raises:
        ValueError: For an item without ``=``, or a key that is given twice.
    """
    pairs: dict[str, str] = {}
    for item in items:
        key, _, value = item.partition('=')
        if not key or not value or key in pairs:
            raise ValueError(f'{option}: expected {expected}, got {item!r}.')
        pairs[key] = value
    return pairs


def parse_target(items: list[str]) -> dict[str, Any]:
    """``['hidden_size=2048', 'fraction.num_hidden_layers=0.5']`` as the mapping that a YAML would hold.

    Raises:
        ValueError: As :func:`parse_pairs`, and for a fraction of no size beside those of some.
    """
    from omegaconf import OmegaConf

    pairs = parse_pairs('--target', items, 'KEY=VALUE, such as hidden_size=2048, each key once')
    fractions = [item for item in items if item.startswith('fraction.')]
    if 'fraction' in pairs and fractions:
        raise ValueError(
            f'--target: fraction={pairs["fraction"]} names no size; keep only those such as {fractions[0]}'
        )
    target: Any = OmegaConf.to_container(OmegaConf.from_dotlist(items))
    return target


def timed_report() -> Callable[[str], None]:
    """A function that prints a line behind the seconds since this call."""
    began = time.monotonic()

    def report(line: str) -> None:
        sys.stdout.write(f'[{time.monotonic() - began:4.0f} s] {line}\n')
        sys.stdout.flush()

    return report
