"""Which way to prune gives the better model: every arm cuts one source to one shape on equal tokens.

An arm prunes for some of the steps and continues pre-training for the rest, through the same Trainer, algorithm and
export as any run. Reported per arm: mean loss over the domains after pruning (soft masks, and finished) and at the end, the
spread between seeds, and the cost in matrix products beside training the target shape from the start for as many steps. Arms
marked ``+compute`` get a quarter more steps, which is more than any learned way costs beyond training the target.

    python benchmarks/quality.py --work runs/quality [--arms NAME ...] [--seeds 1 2 3] [--quick] [--output FILE.json]

Results are kept in WORK/results.jsonl; what is there already is not run again. An arm takes about a minute on 2 cores.
"""
from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import shutil
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any, Mapping, Optional

import torch
from llmfoundry.models.hf import ComposerHFCausalLM
from quality_source import DOMAINS, FULL, QUICK, ComputeMeter, Sizes, make_source, make_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.scaling.measure import domain_loss, find_domains, read_tokens

PRUNE_LEARNING_RATE = 1e-3
CONTINUE_LEARNING_RATE = 2e-3
ROUND_BATCHES = 20
ON_THE_WAY = 32  # sequences per domain for losses before the end


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to spend the steps.

    Attributes:
        name (str): As in the table.
        pruning (Mapping | None): Options of ``targeted_pruning``; None for arms without a source (random weights).
        prune_share (float): Share of the steps spent pruning; 0 for one-shot ways.
        more_steps (float): Total steps as a multiple of the budget.
        mixture (str | None): Update rule of the mixture in continued training.
        distillation (Mapping | None): Options of ``distillation`` in continued training.
    """

    name: str
    pruning: Optional[Mapping[str, Any]]
    prune_share: float = 0.2
    more_steps: float = 1.0
    mixture: Optional[str] = None
    distillation: Optional[Mapping[str, Any]] = None


def _one_shot(scores: Any) -> dict[str, Any]:
    return {'mask_learning': 'one_shot', 'scores': scores, 'freeze_weights': True}


DEPTH = {'layer': 'block_importance', 'hidden': 'taylor', 'head': 'taylor', 'intermediate': 'taylor'}
ARMS = [
    Arm('random initialisation', None, 0),
    Arm('truncation', {**_one_shot('random'), 'truncate': True}, 0),
    Arm('one-shot random', _one_shot('random'), 0),
    Arm('one-shot magnitude', _one_shot({**dict.fromkeys(DEPTH, 'magnitude')}), 0),
    Arm('one-shot activation', _one_shot({**dict.fromkeys(DEPTH, 'activation'), 'layer': 'block_importance'}), 0),
    Arm('one-shot taylor', _one_shot('taylor'), 0),
    Arm('one-shot depth + taylor', _one_shot(DEPTH), 0),
    Arm('one-shot taylor +compute', _one_shot('taylor'), 0, more_steps=1.25),
    Arm('paper (damping 0)', {'multiplier_damping': 0.0}),
    Arm('lagrangian', {}),
    Arm('lagrangian from taylor', {'scores': 'taylor'}),
    Arm('lagrangian, frozen at 0.6', {'freeze_masks_after': '0.6dur'}),
    Arm('progressive', {'mask_learning': 'progressive', 'lagrangian_warmup': '0.8dur'}),
    Arm('progressive from taylor', {'mask_learning': 'progressive', 'scores': 'taylor', 'lagrangian_warmup': '0.8dur'}),
    *(Arm(f'lagrangian, prune {share:.0%}', {}, share) for share in (0.05, 0.1, 0.4)),
    *(Arm(f'progressive, prune {share:.0%}', {'mask_learning': 'progressive', 'lagrangian_warmup': '0.8dur'}, share)
      for share in (0.05, 0.1, 0.4)),
    Arm('progressive, mixture constant', {'mask_learning': 'progressive', 'lagrangian_warmup': '0.8dur'}, mixture='constant'),
    Arm('progressive, mixture sheared', {'mask_learning': 'progressive', 'lagrangian_warmup': '0.8dur'}, mixture='sheared'),
    Arm('progressive, distilled', {'mask_learning': 'progressive', 'lagrangian_warmup': '0.8dur'}, distillation={'weight': 1.0}),
]


class Truncation(TargetedPruning):
    """Keeps the first units of every width and evenly spaced layers, whatever they do."""

    def _start_from_scores(self, state) -> None:
        scores = {}
        for axis, plan in self.plans.items():
            order = torch.arange(plan.units, 0, -1.0)
            if axis == 'layer':
                order = torch.zeros(plan.units)
                order[torch.linspace(0, plan.units - 1, plan.keep).round().long()] = 1.0
            scores[axis] = order.expand(torch.Size(plan.mask_shape).numel() // plan.units, -1).reshape(plan.mask_shape)
        self.learner.start_from(scores)
        self.frozen_masks = self.learner.deterministic('target')


def losses(model: PreTrainedModel, data: Path, sequences: Optional[int] = None) -> dict[str, float]:
    """Loss per domain of a model as it is, masks included, on the first so many sequences or all."""
    was_training = model.training
    model.eval()
    result = {
        name: domain_loss(model, itertools.islice(read_tokens(folder), sequences), 16, name)['loss']
        for name, folder in find_domains(data).items()
    }
    model.train(was_training)
    return result


def mean(values: Mapping[str, float]) -> float:
    return statistics.fmean(values.values())


def prune(arm: Arm, seed: int, work: Path, sizes: Sizes, steps: int, folder: Path, source: str = 'source') -> dict[str, Any]:
    """Stage 1: writes the pruned model to ``folder`` and returns losses and cost."""
    source = work / source
    model = ShearedCausalLM(AutoTokenizer.from_pretrained(source), str(source), use_train_metrics=False)
    options = dict(arm.pruning)
    algorithm = Truncation if options.pop('truncate', False) else TargetedPruning
    pruning, meter = algorithm(**{'target': sizes.target, 'seed': seed, **options}), ComputeMeter()
    export = ExportPruned(str(folder), allow_unconverged=True, overwrite=True)
    trainer = make_trainer(work, model, sizes, steps, PRUNE_LEARNING_RATE, seed, algorithms=(pruning,), callbacks=(meter, export))
    trainer.fit()
    model.cutter.set_masks(pruning.evaluation_masks())
    soft = losses(model.model, work / 'data', ON_THE_WAY)
    trainer.close()
    return {'soft': soft, 'prune_flops': meter.flops}


def run(arm: Arm, seed: int, work: Path, sizes: Sizes) -> dict[str, Any]:
    """One arm with one seed, from the source to the losses at the end."""
    torch.manual_seed(seed)
    folder, data = work / 'pruned', work / 'data'
    shutil.rmtree(folder, ignore_errors=True)
    total = round(sizes.steps * arm.more_steps)
    prune_steps = round(sizes.steps * arm.prune_share) or 1
    record: dict[str, Any] = {'arm': arm.name, 'seed': seed, 'steps': total, 'prune_flops': 0.0}
    if arm.pruning is None:
        config = AutoModelForCausalLM.from_pretrained(work / 'source').config
        config.update({**sizes.target, 'num_key_value_heads': sizes.target['num_attention_heads']})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(work / 'source').save_pretrained(folder)
    else:
        record.update(prune(arm, seed, work, sizes, prune_steps, folder))
    model = ComposerHFCausalLM(tokenizer=AutoTokenizer.from_pretrained(folder), pretrained_model_name_or_path=str(folder),
                               use_train_metrics=False)
    record['finished'] = losses(model.model, data, ON_THE_WAY)
    meter, algorithms, callbacks, interval = ComputeMeter(), [], [], 0
    if arm.distillation is not None:
        from llmshearing.algorithms.distillation import Distillation
        algorithms.append(Distillation(teacher=str(work / 'source'), **arm.distillation))
    if arm.mixture is not None:
        references = json.loads((work / 'source_losses.json').read_text())
        callbacks.append(DynamicBatchLoading(references, update=arm.mixture, max_eval_share=1.0))
        interval = f'{ROUND_BATCHES}ba'
    steps = total - (prune_steps if arm.prune_share else 0)
    trainer = make_trainer(work, model, sizes, steps, CONTINUE_LEARNING_RATE, seed + 100, ROUND_BATCHES, interval, tuple(algorithms),
                           (meter, *callbacks))
    trainer.fit()
    trainer.close()
    record.update(final=losses(model.model, data), continue_flops=meter.flops)
    return record


def table(records: list[dict[str, Any]], source: Mapping[str, float]) -> str:
    """The results as markdown: means over seeds and domains."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_arm.setdefault(record['arm'], []).append(record)
    plain = by_arm.get('random initialisation', records)
    unit = statistics.fmean(r['prune_flops'] + r['continue_flops'] for r in plain)
    lines = ['| arm | seeds | soft | finished | end, mean of domains | between seeds | spread of gaps | cost |', '|---|---|---|---|---|---|---|---|']
    for name, group in sorted(by_arm.items(), key=lambda item: statistics.fmean(mean(r['final']) for r in item[1])):
        ends = [mean(r['final']) for r in group]
        soft = f"{statistics.fmean(mean(r['soft']) for r in group):.3f}" if 'soft' in group[0] else ''
        gaps = statistics.fmean(statistics.pstdev(r['final'][d] - source[d] for d in DOMAINS) for r in group)
        cost = statistics.fmean(r['prune_flops'] + r['continue_flops'] for r in group) / unit
        finished = statistics.fmean(mean(r['finished']) for r in group)
        lines.append(f'| {name} | {len(group)} | {soft} | {finished:.3f} | {statistics.fmean(ends):.3f} | {max(ends) - min(ends):.3f} | '
                     f'{gaps:.3f} | {cost:.2f} |')
    return '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for text, source and results')
    parser.add_argument('--arms', nargs='+', choices=[arm.name for arm in ARMS], help='default: all')
    parser.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3])
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write source losses and all records as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    sizes, work = QUICK if arguments.quick else FULL, arguments.work
    source = make_source(work, sizes)
    references = losses(AutoModelForCausalLM.from_pretrained(source), work / 'data')
    (work / 'source_losses.json').write_text(json.dumps(references))
    results = work / 'results.jsonl'
    records = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(record['arm'], record['seed']) for record in records}
    wanted = [arm for arm in ARMS if arguments.arms is None or arm.name in arguments.arms]
    for seed in arguments.seeds:
        for arm in wanted:
            if (arm.name, seed) in done:
                continue
            records.append(run(arm, seed, work, sizes))
            with results.open('a') as stream:
                stream.write(json.dumps(records[-1]) + '\n')
            sys.stderr.write(f'{arm.name}, seed {seed}: {mean(records[-1]["final"]):.3f}\n')
    sys.stdout.write(f'source: {mean(references):.3f} {json.dumps(references)}\n\n{table(records, references)}\n')
    if arguments.output:
        arguments.output.write_text(json.dumps({'sizes': dataclasses.asdict(sizes), 'source': references, 'records': records}, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
