"""What is asked for, and what is read and refused before anything is worked out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.checkpoints.rotated import is_rotated
from llmshearing.config.source import read_config_at, read_source, refuse_unusable
from llmshearing.config.tokenizer import TOKENIZER_FILES
from llmshearing.data.fingerprint import check_tokenizer
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.families import family_of
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.models.targets import target_shape
from llmshearing.recipes.command_lines import train_command
from llmshearing.recipes.data import PreparedData, read_data
from llmshearing.recipes.hardware import Hardware
from llmshearing.recipes.rules import PAPER_TOKENS
from llmshearing.utils.checks import check_number
from llmshearing.utils.files import load_json
from llmshearing.utils.numbers import unit_of
from llmshearing.utils.paths import names_a_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ['MEASURED', 'Request', 'Run', 'open_run']

MAX_PASSES = 4.0  # up to four, repeated text is nearly as good as new (Muennighoff et al. 2023, arXiv 2305.16264)
MEASURED = ('source', 'law')  # reference losses that a command writes before the run


@dataclasses.dataclass(frozen=True)
class Request:
    """What a person says.

    Attributes:
        source (str): Model folder, config.json or name on the hub.
        target (dict[str, Any]): As ``target:`` in a run file, budgets among it.
        data (str): Folder that ``llmshearing prepare`` wrote.
        hardware (Hardware): GPUs.
        tokens (float | None): Of continued pre-training. Default: one pass over the split, the paper's at most.
        prune_tokens (float | None): Of pruning. Default: the same.
        references (str): ``'source'``, ``'law'``, ``'none'``, or a file of reference losses.
        teacher (str): One of :data:`~llmshearing.recipes.rules.TEACHERS`.
        max_passes (float): Most passes over a split.
        work (str | None): Folder of the run. Default: ``runs/NAME``.
        output (str): Folder of the run files.
    """

    source: str
    target: dict[str, Any]
    data: str
    hardware: Hardware
    tokens: float | None = None
    prune_tokens: float | None = None
    references: str = 'source'
    teacher: str = 'none'
    max_passes: float = MAX_PASSES
    work: str | None = None
    output: str = '.'


@dataclasses.dataclass(frozen=True)
class Run:
    """What both stages have in common, as far as the request and what it names decide it.

    Attributes:
        request (Request): What was asked for.
        source (str): Folder or name of the source.
        config (PretrainedConfig): Its config.
        data (PreparedData): What is trained on.
        before (ModelShape): Of the source.
        shape (ModelShape): Of the target.
        parameters (int): Of the target.
        stored_teacher (str | None): Name of the one whose predictions the data have, where those shall teach. Default:
            ``None``; they are yet to be stored, or not to be.
    """

    request: Request
    source: str
    config: PretrainedConfig
    data: PreparedData
    before: ModelShape
    shape: ModelShape
    parameters: int
    stored_teacher: str | None = None

    @property
    def size(self) -> str:
        """Parameters of the target: 1345423360 as 1.3B."""
        size, unit = unit_of(float(f'{self.parameters:.2e}'), '')  # 999,960,000 is 1.0B
        value = self.parameters / size
        return (f'{value:.1f}' if value < 10 and unit else f'{value:.0f}') + unit.upper().replace('G', 'B')

    @property
    def name(self) -> str:
        """From what to which size."""
        source = Path(self.source)
        name = source.resolve().name if source.is_dir() else self.source.split('/')[-1]
        return f'{name}-to-{self.size}'

    @property
    def work(self) -> str:
        """Folder of the run."""
        return self.request.work or f'runs/{self.name}'

    @property
    def rotates(self) -> bool:
        """Whether hidden dimensions go and the source may be rotated before, and is not yet."""
        is_cut = self.shape.hidden_size < self.before.hidden_size
        return is_cut and family_of(self.config).rotates and not is_rotated(self.source)

    @property
    def taught(self) -> str:
        """Folder of the data with a teacher's predictions, where they are stored."""
        return f'{self.work}/taught' if self.stored_teacher is None else self.request.data

    @property
    def teacher(self) -> PretrainedConfig | None:
        """What is run beside the student."""
        return self.config if self.request.teacher == 'source' else None

    def tokens(self, stage: str) -> float:
        """To train on: what was asked for, else one pass over the split, the paper's at most."""
        given = self.request.prune_tokens if stage == 'prune' else self.request.tokens
        return given or min(PAPER_TOKENS[stage], self.data.tokens(stage))

    def command(self, stage: str) -> str:
        """That starts a stage."""
        return train_command(self.request.hardware.gpus, os.path.join(self.request.output, f'{stage}.yaml'))


def open_run(request: Request) -> tuple[Run, list[str]]:
    """Reads what the request names, and refuses what does not fit; the second are notes on what was not looked at."""
    source = str(Path(request.source).parent) if Path(request.source).is_file() else request.source
    check_number('--max-passes', request.max_passes, 0, above=True)
    config = _read_source(request.source)
    family_of(config)
    data = read_data(request.data)
    notes = _check_against(source, config, data)
    shape, before = target_shape(config, request.target), shape_of(config)
    if shape == before:
        raise ValueError('--target is the source: nothing would be cut; lower at least one number.')
    _check_references(request.references, data)
    parameters = count_parameters(layout_of(config), shape).total
    stored_teacher = data.stored_teacher() if request.teacher == 'stored' else None
    return Run(request, source, config, data, before, shape, parameters, stored_teacher), notes


def _read_source(source: str) -> PretrainedConfig:
    """Of a folder or file as it is; anything else that looks like a name is one on the hub."""
    if Path(source).exists() or names_a_path(source):
        return read_source(source)
    try:
        config = read_config_at('SOURCE', source)
    except ValueError as error:
        problem = ' '.join(str(error).split())  # the hub's own take several lines
        raise ValueError(f'{problem} Give a folder with its config.json instead, or a name that can be had.') from error
    refuse_unusable(source, config)
    return config


def _check_against(source: str, config: PretrainedConfig, data: PreparedData) -> list[str]:
    """Positions and tokenizer; returns what could not be looked at."""
    longest = getattr(config, 'max_position_embeddings', None)
    if longest is not None and data.max_seq_len > longest:
        raise ValueError(
            f'--data {data.folder}: sequences of {data.max_seq_len} tokens are longer than the {longest} positions of '
            f'the source; prepare the data with max_seq_len={longest} or less.'
        )
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in TOKENIZER_FILES):
        return ['note: the source has no tokenizer beside its config, so it is not compared with that of the data']
    from llmshearing.compat.transformers import read_tokenizer

    check_tokenizer(read_tokenizer(source), [(str(Path(data.folder) / 'prune' / data.domains[0]), None)])
    return []


def _check_references(references: str, data: PreparedData) -> None:
    """``'source'``, ``'law'``, ``'none'``, or a file that has a loss for every domain."""
    if references in (*MEASURED, 'none'):
        return
    if not Path(references).is_file():
        raise ValueError(f'--reference-losses {references}: no such file; give source, law, none or a file.')
    losses = load_json(references).get('reference_losses')
    missing = [name for name in data.domains if not isinstance(losses, dict) or name not in losses]
    if missing:
        raise ValueError(
            f'--reference-losses {references}: it has no loss for {", ".join(missing)}; write it with '
            '`llmshearing reference-losses`.'
        )
