"""A YAML file that a person names, as plain values: the one place that knows what can be wrong with reading it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ['read_yaml']


def read_yaml(where: str, path: str, overrides: Sequence[str] = ()) -> Any:
    """What a YAML file holds, with its references resolved.

    Args:
        where (str): What the error begins with.
        path (str): The file.
        overrides (Sequence[str]): Of the form ``key=value``, instead of what the file has there.

    Raises:
        ValueError: If the file cannot be read, is no YAML, refers to nothing or has no place for an override; one line.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
    from yaml import YAMLError

    try:
        content = OmegaConf.load(path)
        if overrides:
            content = OmegaConf.merge(content, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(content, resolve=True)
    except InterpolationKeyError as error:
        raise ValueError(
            f'{where}: {str(error).splitlines()[0]}; ${{NAME}} is another key of the file, an environment variable is '
            '$NAME in a path'
        ) from error
    except (ValueError, TypeError, OSError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f'{where}: {" ".join(str(error).split())}') from error
