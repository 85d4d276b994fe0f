"""The demo: the whole way on one machine, from a real pre-trained model and real text to a report.

Each phase prints what it does and how long it took; source model, text and prepared data are kept and reused by the
next demo in the same folder. Training runs through ``llmshearing train`` and the YAMLs in ``yamls/demo``, like any
other run; whatever else needs torch runs in a process of its own that ends with it, so that training has the
machine's memory to itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llmshearing.checkpoints.rotated import is_rotated
from llmshearing.utils.files import dump_json

__all__ = ['run_demo', 'write_report']

ROOT = Path(__file__).resolve().parents[2]
YAMLS = ROOT / 'yamls' / 'demo'
DOMAINS = ('python', 'api_docs', 'descriptions', 'licences')
MAX_SEQ_LEN = 256
BATCH_TOKENS = 4 * MAX_SEQ_LEN
EVAL_TOKENS = 4096
KEPT_HIDDEN, ROTATION_TOKENS = 384, 8192  # the target's hidden size, and tokens to find the basis on
FIXED_AXES = 128  # on so few tokens the usual 64 cost 0.012 nats before any cut, more than is allowed
PROMPTS = ('The capital of France is', 'def read_lines(path):\n', 'Redistribution and use in source and binary forms')


def say(text: str) -> None:
    sys.stdout.write(text + '\n')
    sys.stdout.flush()


@contextmanager
def phase(title: str, seconds: dict[str, float]) -> Iterator[None]:
    """A part of the demo: announces it, measures the block, and keeps its seconds by its title."""
    say(f'\n=== {title}')
    start = time.monotonic()
    yield
    seconds[title] = time.monotonic() - start
    say(f'--- {title}: {seconds[title]:.0f} s')


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process and returns what it returns."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn'), initializer=_without_progress_bars) as pool:
        return pool.submit(function, *arguments).result()


def _without_progress_bars() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()


def train(yaml: Path, *overrides: str) -> None:
    """Runs one YAML as a user does; its progress goes to the terminal."""
    command = [sys.executable, '-m', 'llmshearing.cli', 'train', '-n', '1', str(yaml)]
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'PYTHONWARNINGS': 'ignore', 'TRANSFORMERS_VERBOSITY': 'error'}
    result = subprocess.run([*command, *overrides], env=environment)
    if result.returncode:
        raise ValueError(f'{yaml.name} ended with exit code {result.returncode}; its messages are above.')


def prepare_data(work: Path) -> dict[str, dict[str, int]]:
    """Harvests text and turns it into tokenized splits; returns what was harvested."""
    from llmshearing.demo.text import harvest_text
    from llmshearing.prepare.pipeline import prepare

    harvested = harvest_text(work / 'text', domains=DOMAINS)
    prepare(
        {
            'tokenizer': str(work / 'source'),
            'max_seq_len': MAX_SEQ_LEN,
            'out': str(work / 'data'),
            'seed': 17,
            'domains': {name: {'path': str(work / 'text' / f'{name}.jsonl')} for name in DOMAINS},
            'splits': {'eval': {'fraction': 0.15, 'tokens': EVAL_TOKENS}, 'prune': {'fraction': 0.4}, 'continue': {}},
        }
    )
    return harvested


def source_model(work: Path) -> tuple[Path, dict[str, Any]]:
    """Builds the source model's folder and looks at what it does."""
    from llmshearing.demo.source_model import build_source_model, check_source_model

    source = build_source_model(work / 'source', work / 'downloads')
    return source, check_source_model(source)


def rotate(work: Path) -> dict[str, Any]:
    """Writes the source in a basis in which its trailing hidden dimensions carry little; returns what was checked."""
    from llmshearing.rotation.rotate_source import rotate_source
    from llmshearing.rotation.settings import RotationSettings

    settings = RotationSettings(
        keep=KEPT_HIDDEN, tokens=ROTATION_TOKENS, held_out=EVAL_TOKENS, seq_len=MAX_SEQ_LEN, fixed_axes=FIXED_AXES
    )
    return rotate_source(work / 'source', work / 'data' / 'prune', work / 'rotated', settings, report=say)


def losses_of(folders: dict[str, Path], data: Path) -> dict[str, dict[str, float]]:
    """Loss per domain of several models."""
    from llmshearing.demo.measure import threads
    from llmshearing.scaling.measure import find_domains, measure_models

    with threads():
        points = measure_models([*map(str, folders.values())], find_domains(data, 'eval', DOMAINS), report=say)
    return {name: point['losses'] for name, point in zip(folders, points)}


def speed_and_samples(folders: dict[str, Path]) -> dict[str, tuple[dict[str, Any], list[dict[str, str]]]]:
    """Size, speed and generated text of several models."""
    from llmshearing.demo.measure import describe_model, generate_samples

    return {name: (describe_model(folder), generate_samples(folder, PROMPTS)) for name, folder in folders.items()}


def run_demo(work: Path, prune_steps: int, continue_steps: int) -> None:
    """All phases of the demo; see the module's text.

    Args:
        work (Path): Folder for everything the demo makes.
        prune_steps (int): Batches of pruning, a multiple of 2 and at least 6.
        continue_steps (int): Batches of continued pre-training, a multiple of 3 and at least 6.

    Raises:
        ValueError: For other numbers of steps, or outside a checkout of the repository, where the YAMLs are.
    """
    if not YAMLS.is_dir():
        raise ValueError(f'the demo reads its YAMLs from a checkout of the repository; there is no {YAMLS}.')
    if prune_steps % 2 or continue_steps % 3 or min(prune_steps, continue_steps) < 6:
        raise ValueError(
            '--prune-steps must be a multiple of 2 and --continue-steps of 3, both at least 6: '
            'they are split into rounds.'
        )
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    seconds: dict[str, float] = {}  # by phase, in the order of running
    source, losses = _make_source(work, seconds)
    _train_all(work, prune_steps, continue_steps, seconds)
    folders = {
        'pruned': work / 'pruned',
        'continued': work / 'continue' / 'huggingface' / 'final',
        'scratch': work / 'scratch' / 'huggingface' / 'final',
    }
    with phase('losses of the results', seconds):
        losses.update(in_fresh_process(losses_of, folders, work / 'data'))
    with phase('opened by plain transformers', seconds):
        check = Path(__file__).with_name('check_result.py')
        subprocess.run([sys.executable, str(check), str(folders['continued'])], check=True, cwd=work)
    with phase('speed and samples', seconds):
        seen = in_fresh_process(speed_and_samples, {'source': source, 'result': folders['continued']})
    report = write_report(work, _results(losses, seen, prune_steps, continue_steps, seconds))
    say(f'\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Report: {report}\nModel:  {folders["continued"]}')


def _make_source(work: Path, seconds: dict[str, float]) -> tuple[Path, dict[str, dict[str, float]]]:
    """Everything before training, as far as it is not there yet; returns the source's folder and its losses."""
    with phase('source model', seconds):
        source, seen = in_fresh_process(source_model, work)
        say(json.dumps(seen, indent=1, ensure_ascii=False))
    with phase('text and tokens', seconds):
        if not (work / 'data' / 'manifest.json').is_file():
            in_fresh_process(prepare_data, work)
    with phase('rotating the source', seconds):
        if not is_rotated(work / 'rotated'):
            in_fresh_process(rotate, work)
    with phase('losses of the source', seconds):
        losses = in_fresh_process(losses_of, {'source': source}, work / 'data')
        dump_json(work / 'reference_losses.json', {'reference_losses': losses['source']}, indent=1)
    return source, losses


def _train_all(work: Path, prune_steps: int, continue_steps: int, seconds: dict[str, float]) -> None:
    """The three runs."""
    for name in ('prune', 'continue', 'scratch'):
        (work / f'{name}_metrics.jsonl').unlink(missing_ok=True)
    variables = f'variables.work={work}'
    with phase('pruning', seconds):
        source = f'variables.source={work / "rotated"}'
        train(YAMLS / 'prune.yaml', variables, source, *_lengths(prune_steps, rounds=2))
    with phase('continued pre-training', seconds):
        train(YAMLS / 'continue.yaml', variables, *_lengths(continue_steps, rounds=3))
    with phase('same shape from random weights', seconds):
        steps = prune_steps + continue_steps
        shares = [
            f'train_loader.dataset.proportions.{name}_{split}={count}'
            for name in DOMAINS
            for split, count in (('prune', prune_steps), ('continue', continue_steps))
        ]
        length = (f'max_duration={steps}ba', f'train_loader.dataset.round_batches={steps}')
        train(YAMLS / 'scratch.yaml', variables, *length, *shares)


def _lengths(steps: int, rounds: int) -> list[str]:
    """Keys of a run of so many steps whose mixture is updated in so many rounds."""
    length = steps // rounds
    return [f'max_duration={steps}ba', f'eval_interval={length}ba', f'train_loader.dataset.round_batches={length}']


def _results(
    losses: dict[str, dict[str, float]],
    seen: dict[str, tuple[dict[str, Any], list[dict[str, str]]]],
    prune_steps: int,
    continue_steps: int,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What :func:`write_report` takes."""
    from llmshearing.demo.measure import peak_memory_bytes

    steps = {'pruned': prune_steps, 'continued': continue_steps, 'scratch': prune_steps + continue_steps}
    return {
        'source_name': 'SmolLM2-135M-Instruct',
        'models': {name: facts for name, (facts, _) in seen.items()},
        'losses': losses,
        'tokens': {name: count * BATCH_TOKENS for name, count in steps.items()},
        'samples': {name: samples for name, (_, samples) in seen.items()},
        'seconds': seconds,
        'peak_memory_bytes': peak_memory_bytes(),
    }


def write_report(work: Path, results: Mapping[str, Any]) -> Path:
    """Writes the page on the three runs, and what was measured as JSON beside it, for ``llmshearing report``.

    Args:
        work (Path): The demo's folder, with the metrics of its runs.
        results (Mapping[str, Any]): ``models`` maps source and result to ``measure.describe_model``; ``losses`` maps
            source, pruned, continued and scratch to domain to nats per token; ``tokens`` a stage to the tokens it was
            trained on; ``samples`` a model to its samples; ``seconds`` a phase to its time, in the order of running.

    Returns:
        Path: The page.
    """
    from llmshearing.reports.build import build_report  # not before the training, which needs the memory

    dump_json(work / 'report' / 'report.json', {'results': results}, indent=1)
    return build_report(work, out=work / 'report')
