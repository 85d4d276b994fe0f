"""The reference losses that a rule compares with, given in the run file or in a file of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmshearing.utils.checks import is_number
from llmshearing.utils.files import load_json

__all__ = ['check_references', 'read_reference_losses']


def read_reference_losses(source: Mapping[str, float] | str | None) -> dict[str, float]:
    """Reference losses by domain, given inline or as a JSON file with a ``reference_losses`` mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON, holds no such mapping, or a loss that is no number of at least 0.
    """
    place = 'reference_losses'
    if isinstance(source, str):
        place = source
        try:
            source = load_json(source).get('reference_losses')
        except FileNotFoundError:
            raise FileNotFoundError(
                f'reference_losses: there is no file {place}; let `llmshearing reference-losses` write it, or give a '
                'loss for each domain.'
            ) from None
        except ValueError as error:
            raise ValueError(
                f'reference_losses: {error} Give a file that llmshearing reference-losses wrote, or a loss for each '
                'domain.'
            ) from None
        if not isinstance(source, dict):
            raise ValueError(f'{place} holds no mapping "reference_losses" from domain to loss.')
    bad = {name: loss for name, loss in (source or {}).items() if not is_number(loss) or loss < 0}
    if bad:
        raise ValueError(f'Reference losses must be numbers of at least 0, but {place} gives {bad}.')
    return {name: float(loss) for name, loss in (source or {}).items()}


def check_references(domains: Sequence[str], references: Mapping[str, float]) -> None:
    """Raises if a domain has no reference loss.

    Raises:
        ValueError: Naming the domains.
    """
    missing = [name for name in domains if name not in references]
    if missing:
        raise ValueError(
            f'There is no reference loss for domains {missing}, only for {sorted(references)}. Add them '
            f'to `reference_losses`, or choose update: constant.'
        )
