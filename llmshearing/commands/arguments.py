"""What commands have in common: options as settings, targets and counts as people write them, lines with the time."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from llmshearing.utils.numbers import parse_count

__all__ = ['command_parser', 'count_argument', 'parse_pairs', 'parse_target', 'settings_from', 'timed_report']

Settings = TypeVar('Settings')


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


def parse_pairs(option: str, items: list[str]) -> dict[str, str]:
    """``['hidden_size=2048']`` as a mapping of text.

    Raises:
        ValueError: For an item without ``=``, or a key that is given twice.
    """
    pairs: dict[str, str] = {}
    for item in items:
        key, _, value = item.partition('=')
        if not key or not value or key in pairs:
            raise ValueError(f'{option}: expected KEY=VALUE, each key once, got {item!r}.')
        pairs[key] = value
    return pairs


def parse_target(items: list[str]) -> dict[str, Any]:
    """``['hidden_size=2048', 'fraction.num_hidden_layers=0.5']`` as the mapping that a YAML would hold.

    Raises:
        ValueError: For an item without ``=``, or a key that is given twice.
    """
    target: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition('=')
        if not equals or not key or not text:
            raise ValueError(
                f'--target: not KEY=VALUE: {item!r}; expected such as hidden_size=2048 or fraction.hidden_size=0.5'
            )
        place = target
        if key.startswith('fraction.'):
            place, key = target.setdefault('fraction', {}), key.removeprefix('fraction.')
            if not isinstance(place, dict):
                raise ValueError(f'--target: fraction={place} names no size; keep only those such as {item}')
        if key in place:
            raise ValueError(f'--target: {key} is given twice; keep one of them')
        place[key] = _value(text)
    return target


def _value(text: str) -> Any:
    if text.lower() in ('true', 'false'):  # as YAML reads it
        return text.lower() == 'true'
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def timed_report() -> Callable[[str], None]:
    """A function that prints a line behind the seconds since this call."""
    began = time.monotonic()

    def report(line: str) -> None:
        sys.stdout.write(f'[{time.monotonic() - began:4.0f} s] {line}\n')
        sys.stdout.flush()

    return report
