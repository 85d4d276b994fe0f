"""What one run file is made of, and its text: a template with a comment on every key, filled from a plain dataclass.

The decision here: the template holds what never changes between runs (the paper's rates, callbacks, checkpoints), so
there is one place for it and for its comments. The shipped YAMLs are made by the same template (``yamls/make.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llmshearing.recipes.rules import Schedule

__all__ = ['STAGES', 'Recipe', 'as_yaml', 'render']

STAGES = ('prune', 'continue')
SCORE_NOTES = {
    'activation': 'size of what a unit carries',
    'block_importance': 'change of the residual stream',
    'position': 'order of the learned basis',
    'reap': 'what an expert adds, times its gate',
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that differs between two run files of a stage. ``KEY_note`` is the comment behind a key.

    Attributes:
        stage (str): One of :data:`STAGES`.
        header (str): Comment lines at the top, each with its ``#``.
        work (str): Folder of the run.
        source (str): Folder or hub name of the source; stage 1, and stage 2 where it teaches.
        teacher (str): One of :data:`~llmshearing.recipes.rules.TEACHERS`.
        data (str): Folder that ``llmshearing prepare`` wrote.
        max_seq_len (int): Tokens per sequence.
        target (Mapping[str, tuple[int, str]]): Size and comment by key of the target; stage 1 only.
        scores (Mapping[str, str]): Method by axis that units go one after the other by; empty for the paper's learned
            masks.
        domains (Sequence[str]): Names, in order.
        proportions (Mapping[str, float]): First mixture by domain; stage 1 only, the second takes what the first left.
        schedule (Schedule): Steps, batch, rounds, warm-ups.
        micro_batch (int): Sequences per forward on one GPU.
        max_passes (float): Times any domain may be gone through.
        run_name (str): Names the checkpoints.
        update (str): Rule of the mixture.
        references (str): File of reference losses; empty where there is none.
        references_note (str): Comment on the file, or on the losses.
        reference_losses (Mapping[str, float]): The losses themselves, where there is no file.
        max_eval_sequences (int): Sequences that are evaluated per domain; 0 leaves the key out.
        max_eval_share (float): Share of the time in evaluation that is warned of; 0 leaves the key out.
        attention (str): Implementation of attention.
        precision (str): ``amp_bf16`` or ``fp32``.
        sharded (bool): FSDP2 over several GPUs.
        checkpointing (bool): Activation checkpointing, where sharded.
    """

    stage: str
    header: str
    work: str
    data: str
    data_note: str
    max_seq_len: int
    domains: Sequence[str]
    schedule: Schedule
    micro_batch: int
    run_name: str
    max_passes: float = 4
    source: str = ''
    teacher: str = 'none'
    source_note: str = ''
    target: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    target_note: str = ''
    scores: Mapping[str, str] = dataclasses.field(default_factory=dict)
    proportions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    proportions_note: str = ''
    update: str = 'sheared'
    update_note: str = 'rule of the paper, clipped'
    references: str = ''
    references_note: str = ''
    reference_losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    max_eval_sequences: int = 0
    max_eval_share: float = 0.0
    max_eval_share_note: str = ''
    attention: str = 'flash_attention_2'
    attention_note: str = 'needs the extra `gpu`; sdpa works everywhere'
    precision: str = 'amp_bf16'
    sharded: bool = True
    checkpointing: bool = True


class _Dumper(yaml.SafeDumper):
    """Quotes text that OmegaConf would read as something else, too: to it ``1e3`` is a number."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar('tag:yaml.org,2002:str', text, style="'")


_Dumper.add_representer(str, _represent_text)


def as_yaml(value: Any) -> str:
    """A value as YAML writes it, quoted where plain text would mean something else."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.split('\n')[0]


def render(recipe: Recipe) -> str:
    """The text of a run file."""
    environment = Environment(  # the text is YAML, whose quoting is `scalar`
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters['scalar'] = as_yaml
    values = {**vars(recipe), **vars(recipe.schedule), 'score_notes': SCORE_NOTES}
    return environment.get_template('run.yaml.j2').render(values)
