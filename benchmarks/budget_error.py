"""How far the law of ``llmshearing budget`` is from real runs: fitted on small ones, asked about a larger one.

Three sources of one kind are trained; each is pruned once (Taylor scores) at two rates and trained on at a constant
learning rate, its loss measured along the way. The law is fitted to the runs of the two smaller sources and
predicts those of the largest, which it has not seen, at tokens it has; and, fitted on the first half of every
curve, the second half.

usage: python benchmarks/budget_error.py --work runs/budget [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from llmfoundry.models.hf import ComposerHFCausalLM
from quality import losses, prune
from quality_tables import mean
from quality_arms import Arm
from quality_source import FULL, QUICK, Sizes, make_source, make_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing.scaling.curves import Curve
from llmshearing.scaling.fit_quality import predict_run
from llmshearing.scaling.post_training import fit_post_training

LEARNING_RATE = 1e-3
SOURCE_STEPS, STEPS = 1500, 300
POINTS = 6
RATES = (0.35, 0.6)
SOURCES = {
    'small': dict(hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=256),
    'middle': dict(hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=344),
    'source': dict(hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=512),
}
QUICK_SOURCES = {
    'small': dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32),
    'middle': dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48),
    'source': dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=64),
}


def measure_run(name: str, rate: float, work: Path, sizes: Sizes) -> dict[str, Any]:
    """Prunes and trains on; returns one entry of RUNS.json."""
    source = AutoModelForCausalLM.from_pretrained(work / name)
    before = source.num_parameters()
    target = {'params': round(before * (1 - rate)), 'multiple_of': 4, 'tolerance': 0.1}
    folder = work / f'{name}-{rate:.0%}'
    arm = Arm(name, {'mask_learning': 'one_shot', 'scores': 'taylor', 'freeze_weights': True, 'target': target})
    prune(arm, 1, work, sizes, 1, folder, source=name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ComposerHFCausalLM(tokenizer=tokenizer, pretrained_model_name_or_path=str(folder), use_train_metrics=False)
    trainer = make_trainer(work, model, sizes, sizes.steps, LEARNING_RATE, seed=2, alpha_f=1.0)
    curve = []
    for _ in range(POINTS):
        trainer.fit(duration=f'{sizes.steps // POINTS}ba')
        curve.append([trainer.state.timestamp.token.value, mean(losses(model.model, work / 'data'))])
    trainer.close()
    return {
        'name': folder.name,
        'params_before': before,
        'pruning_rate': 1 - model.model.num_parameters() / before,
        'source_loss': mean(losses(source, work / 'data')),
        'curve': curve,
    }


def as_run(entry: dict[str, Any], points: slice) -> Curve:
    tokens, values = np.array(entry['curve'])[points].T
    known = {key: entry[key] for key in ('name', 'params_before', 'pruning_rate', 'source_loss')}
    return Curve(**known, tokens=tokens, losses=values)


def errors(fitted: list[Curve], asked: list[Curve]) -> list[float]:
    """Relative errors of predicted losses, of a law that was fitted to other points."""
    law = fit_post_training(fitted)
    return [abs(p / v - 1) for run in asked for p, v in zip(predict_run(law, run), run.losses)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work', type=Path, required=True, help='folder for text, sources and runs; that of quality.py will do'
    )
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the runs (RUNS.json) and the errors')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    base, sources = (QUICK, QUICK_SOURCES) if arguments.quick else (FULL, SOURCES)
    base = (
        dataclasses.replace(base, steps=2 * POINTS)
        if arguments.quick
        else dataclasses.replace(base, steps=STEPS, source_steps=SOURCE_STEPS)
    )
    entries = []
    for name, shape in sources.items():
        sizes = dataclasses.replace(base, source={**base.source, **shape})
        make_source(arguments.work, sizes, name)
        entries += [measure_run(name, rate, arguments.work, sizes) for rate in RATES]
    whole, half = slice(None), POINTS // 2
    larger = errors([as_run(e, whole) for e in entries[:4]], [as_run(e, whole) for e in entries[4:]])
    later = errors([as_run(e, slice(half)) for e in entries], [as_run(e, slice(half, None)) for e in entries])
    result = {'runs': entries}
    for name, values in (('larger model', larger), ('later tokens', later)):
        result[name] = {'median': statistics.median(values), 'largest': max(values)}
        sys.stdout.write(
            f'{name}: median error {statistics.median(values):.2%}, largest {max(values):.2%}, {len(values)} points\n'
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
