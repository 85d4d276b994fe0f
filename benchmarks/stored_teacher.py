"""What a stored teacher is worth and costs beside the live one: the same student, samples and steps.

A source is cut in one shot; its training samples for some steps are taught by the source with ``llmshearing teach``'s
functions; then the student is trained on them plainly, with the live teacher, and with what was stored. Reported are
losses on held-out text, mean over the domains, and seconds per step, the median without the first.

    python benchmarks/stored_teacher.py --work runs/quality [--smollm | --quick] [--steps N] [--top-k] [--output FILE]

WORK may be one that ``quality.py`` made. On 2 cores ``--smollm --steps 20`` takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from llmfoundry.models.hf import ComposerHFCausalLM
from quality import losses, prune
from quality_tables import mean
from quality_arms import GROUPS
from quality_source import DOMAINS, FULL, QUICK, SMOLLM, Sizes, make_source, make_trainer
from streaming import MDSWriter
from transformers import AutoTokenizer

from llmshearing.algorithms.distillation import Distillation
from llmshearing.data.mds import read_tokens
from llmshearing.teacher.settings import TeachSettings
from llmshearing.teacher.teach import teach

ARM = next(arm for arm in GROUPS['ways'] if arm.name == 'one-shot depth + taylor')


class StepTimes(Callback):
    """Seconds of each batch, in ``seconds``."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def batch_start(self, state: State, logger: Logger) -> None:
        self._began = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def make_data(work: Path, whole: Path, sizes: Sizes, steps: int) -> None:
    """The first samples of each domain, as many as the steps need, and evaluation as it is."""
    shutil.rmtree(work, ignore_errors=True)
    for name in DOMAINS:
        columns = {'tokens': f'ndarray:uint16:{sizes.max_seq_len}'}
        with MDSWriter(out=str(work / 'data/train' / name), columns=columns, hashes=['sha1']) as writer:
            for number, row in enumerate(read_tokens(whole / 'data/train' / name)):
                if number * len(DOMAINS) > steps * sizes.batch_size:
                    break
                writer.write({'tokens': row.astype('uint16')})
        shutil.copytree(whole / 'data/eval' / name, work / 'data/eval' / name)
    for name in ('tokenizer', 'source'):
        (work / name).symlink_to((whole / name).resolve())


def train(work: Path, sizes: Sizes, steps: int, algorithms: tuple) -> dict[str, Any]:
    """One way, from the pruned folder."""
    torch.manual_seed(1)
    folder = work / 'pruned'
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ComposerHFCausalLM(tokenizer=tokenizer, pretrained_model_name_or_path=str(folder), use_train_metrics=False)
    times = StepTimes()
    trainer = make_trainer(work, model, sizes, steps, sizes.learning_rate, 1, algorithms=algorithms, callbacks=(times,))
    trainer.fit()
    trainer.close()
    found = losses(model.model, work / 'data', sizes.on_the_way)
    return {'loss': mean(found), 'losses': found, 'seconds': statistics.median(times.seconds[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for text, source and results')
    parser.add_argument('--smollm', action='store_true', help='SmolLM2-135M instead of the small source')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--top-k', action='store_true', help='store the top of the teacher too, in as many bytes')
    parser.add_argument('--output', type=Path, help='write the results as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    sizes, steps = QUICK if arguments.quick else SMOLLM if arguments.smollm else FULL, arguments.steps
    make_source(arguments.work, sizes)
    work = arguments.work / 'stored'
    make_data(work, arguments.work, sizes, steps)
    prune(ARM, 1, work, sizes, 1, work / 'pruned')
    source = str(work / 'source')
    ways: dict[str, tuple[TeachSettings | None, tuple]] = {
        'plain': (None, ()),
        'live': (None, (Distillation(source),)),
        'stored draws': (TeachSettings(), (Distillation(stored=True),)),
    }
    if arguments.top_k:
        ways['stored top'] = (TeachSettings(top_k=15), (Distillation(stored=True),))
    results: dict[str, Any] = {}
    for name, (settings, algorithms) in ways.items():
        if settings is not None:
            shutil.rmtree(work / 'taught', ignore_errors=True)
            began = time.perf_counter()
            teach(work / 'data', source, work / 'taught', settings)
            seconds = time.perf_counter() - began
        results[name] = train(work, sizes, steps, algorithms)
        if settings is not None:
            results[name]['teaching'] = seconds
        plain = results['plain']['seconds']
        sys.stdout.write(
            f'{name:<14} loss {results[name]["loss"]:.4f}  {results[name]["seconds"]:7.3f} s a step  '
            f'{results[name]["seconds"] / plain:5.2f} of plain\n'
        )
        sys.stdout.flush()
    if arguments.output:
        arguments.output.write_text(json.dumps({'steps': steps, **results}, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
