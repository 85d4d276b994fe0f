"""The model card of an exported folder: where the model comes from, what it is, and under which licence it may be used.

A pruned model is a derived work of its source, so the source's licence is carried over: the ``license`` entries of the
source's own card and its licence files. Where the source is not at hand the card says so instead of guessing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmshearing.models.shapes import ModelShape
from llmshearing.models.source_files import LICENCE_FILES, TAG, source_licence
from llmshearing.utils.markdown import markdown_table

__all__ = ['CardFacts', 'Training', 'derived_card', 'model_card', 'write_model_card']


@dataclasses.dataclass(frozen=True)
class Training:
    """What a model has seen in its stage, and its losses.

    Attributes:
        batches (int): Batches trained; 0 where none were, or that is not known.
        tokens (int): Tokens trained on.
        losses (Mapping[str, float]): Last measured loss by evaluation set.
        losses_of (str): What was evaluated, where that is not simply this model.
        losses_at (int | None): Batches of the stage before that evaluation.
    """

    batches: int = 0
    tokens: int = 0
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    losses_of: str = 'this model'
    losses_at: int | None = None


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card tells; None where it is not known.

    Attributes:
        name (str): Name of the exported model.
        source (str | None): Name of the source model.
        stage (str): ``'pruned'``, ``'cut'``, ``'continued'``, ``'kept'`` (uncut, with masks), ``'text'`` or
            ``'imported'``.
        shape (ModelShape): Shape of the exported model.
        parameters (int): Its parameters, a tied LM head counted once.
        source_shape (ModelShape | None): Shape of the source.
        source_parameters (int | None): Parameters of the source.
        training (Training): What it has seen in the stage, and its losses.
        recipe (Mapping[str, Any]): Settings worth telling, by name.
        caution (str | None): What sets the model apart from what its stage promises.
    """

    name: str
    source: str | None
    stage: str
    shape: ModelShape
    parameters: int
    source_shape: ModelShape | None = None
    source_parameters: int | None = None
    training: Training = Training()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    caution: str | None = None


STAGES = {
    'pruned': 'Structured pruning of {source} to a smaller shape, learned jointly with the weights. It is meant to be '
    'trained further before it is used: a model that was only pruned is much worse than its size.',
    'cut': 'Cut from {source} to a smaller shape in one shot, and not trained since. It is a look at what can be had, '
    'and a place to begin: continue its pre-training before it is used.',
    'continued': 'Language model in the standard Hugging Face format, saved from continued pre-training.',
    'kept': 'The weights of {source} in the course of pruning, **uncut**, with the masks learned so far beside them in '
    '`masks/masks.safetensors`, for study. The model in this folder computes without the masks.',
    'text': 'The text part of {source}, a multimodal model: the same tensors, as a model of its own.',
    'imported': 'Converted from a state dict of the first Sheared LLaMA code; every tensor was accounted for by name.',
}


def _front_matter(licence: Mapping[str, Any], tag: str, base_model: str | None) -> str:
    """What the hub reads of a card, with its lines of dashes.

    Args:
        licence (Mapping[str, Any]): :func:`~llmshearing.models.source_files.source_licence` of the source.
        tag (str): What was done to it.
        base_model (str | None): Name of the source, where it is known.
    """
    head = {'library_name': 'transformers', **licence, 'tags': [tag, TAG]}
    head |= {'base_model': base_model} if base_model else {}
    return f'---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---'


def derived_card(licence: Mapping[str, Any], tag: str, base_model: str | None, name: str, *sections: str) -> str:
    """The text of the card of a source in another form; arguments as of the front matter, then its title and body."""
    terms = licence.get('license')
    found = f': {terms}' if terms else ', which was not found beside it; look it up before you share this model'
    last = f'## Licence\n\nDerived from the source model and under its licence{found}.'
    return '\n\n'.join([_front_matter(licence, tag, base_model), f'# {name}', *sections, last]) + '\n'


def model_card(facts: CardFacts, licence: Mapping[str, Any]) -> str:
    """The text of the folder's ``README.md``."""
    training = facts.training
    parts = [
        _front_matter(licence, 'structured-pruning', facts.source),
        f'# {facts.name}',
        STAGES[facts.stage].format(source=facts.source or 'a source model'),
        *([facts.caution] if facts.caution else []),
        _shape_table(facts),
    ]
    if training.batches:
        on = f' on {training.tokens:,} tokens' if training.tokens else ''
        parts.append(f'Trained for {training.batches:,} batches{on} in this stage.')
    if facts.recipe:
        parts.append('## Recipe\n\n' + '\n'.join(f'- {name}: {value}' for name, value in facts.recipe.items()))
    if training.losses:
        losses = [(name, f'{value:.4f}') for name, value in training.losses.items()]
        is_earlier = training.losses_at not in (None, training.batches)
        when = f' after {training.losses_at:,} of {training.batches:,} batches' if is_earlier else ''
        parts.append(
            f'## Loss\n\nLast evaluation of {training.losses_of}{when}, cross-entropy per token.\n\n'
            f'{markdown_table(["evaluation set", "loss"], losses)}'
        )
    parts.append(f'## Licence\n\n{_licence_text(facts, licence)}')
    parts.append(
        '## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n'
        "model = AutoModelForCausalLM.from_pretrained('path/to/this/folder')\n"
        "tokenizer = AutoTokenizer.from_pretrained('path/to/this/folder')\n```"
    )
    return '\n\n'.join(parts) + '\n'


def _shape_table(facts: CardFacts) -> str:
    source = facts.source_shape.as_dict() if facts.source_shape else None
    rows = [('parameters', facts.source_parameters, facts.parameters)]
    rows += [(name, source and source[name], value) for name, value in facts.shape.as_dict().items()]
    if source is None:
        return markdown_table(['', 'this model'], [(name, f'{value:,}') for name, _, value in rows])
    compared = [(name, '?' if old is None else f'{old:,}', f'{value:,}') for name, old, value in rows]
    return markdown_table(['', 'source', 'this model'], compared)


def _licence_text(facts: CardFacts, licence: Mapping[str, Any]) -> str:
    if licence.get('license'):
        named = ' '.join(str(licence[key]) for key in ('license', 'license_name', 'license_link') if licence.get(key))
        return f'Derived from {facts.source or "the source model"} and under its licence: {named}.'
    if facts.source is None and facts.stage == 'continued':
        return (
            'The licence of the model that training began with applies. Which one that was did not stand in the '
            'checkpoint; look it up before you share this model.'
        )
    return (
        f'Derived from {facts.source or "a source model"}, whose licence applies. '
        'It was not found beside the source when this folder was written; look it up before you share this model.'
    )


def write_model_card(folder: Path, facts: CardFacts, files: Mapping[str, str]) -> None:
    """Writes ``README.md`` into a model folder, and of the source's small ``files`` those of its licence."""
    (folder / 'README.md').write_text(model_card(facts, source_licence(files)), encoding='utf-8')
    for name in LICENCE_FILES:
        if name in files:
            (folder / name).write_text(files[name], encoding='utf-8')
