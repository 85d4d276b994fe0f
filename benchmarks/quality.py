"""Which way to prune gives the better model: every arm cuts one source to one shape on equal tokens.

An arm prunes for some of the steps and continues pre-training for the rest, through the same Trainer, algorithm and
export as any run. Reported per arm: mean loss over the domains after pruning (soft masks, and finished) and at the end,
the spread between seeds and of the domains' gaps to the source, and the cost in matrix products. The learning rate of
pruning goes on into continued training: warm-up, constant, then a cosine over what is left.

    python benchmarks/quality.py --work runs/quality [--smollm | --mixture] [--groups ways share ...] [--arms NAME ...]
                                 [--seeds 1 2 3] [--steps N] [--rate R] [--tokens N] [--rotate] [--learn N]
                                 [--bfloat16] [--quick] [--output FILE.json]

With ``--mixture`` the source is a small mixture of experts, with a work folder of its own, and half of its experts
go. With ``--rotate`` the source is first rotated to the principal directions of its residual stream, by its training
text; with ``--learn`` on to the subspace that so many steps find. With ``--tokens`` its vocabulary is trimmed before,
and the target's MLPs get the parameters: losses then compare in nats per byte of the same text. Results are kept in
WORK/results.jsonl (with ``--tokens`` in a folder below); what is there already is not run again. On 2 cores an arm
takes about a minute, with ``--smollm`` about ten.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any
from collections.abc import Mapping

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from llmfoundry.models.hf import ComposerHFCausalLM
from quality_arms import GROUPS, Arm
from quality_source import (
    DOMAINS,
    FULL,
    MIXTURE,
    QUICK,
    QUICK_MIXTURE,
    SMOLLM,
    ComputeMeter,
    Sizes,
    held_out_text,
    make_source,
    make_trainer,
    make_trimmed,
)
from quality_tables import domain_table, mean, table
from quality_variants import VARIANTS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from vocabulary import nats_and_tokens

from llmshearing.algorithms.distillation import Distillation
from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.compat.composer import close_trainer
from llmshearing.data.mds import read_tokens
from llmshearing.models.shapes import with_shape
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.models.targets import target_shape
from llmshearing.rotation.rotate_source import rotate_source
from llmshearing.rotation.settings import RotationSettings
from llmshearing.scaling.points import points_from_models
from llmshearing.scaling.loss import domain_loss
from llmshearing.scaling.measure import find_domains
from llmshearing.scaling.reference_loss import check_points, fit_law
from llmshearing.teacher.settings import TeachSettings
from llmshearing.teacher.teach import teach

SKEWED = (8, 4, 2, 1, 1)
LEARN_TOKENS = 1280  # in a step of learning a subspace, as in rotation_cost.py
FAMILY = {  # smaller relatives of the small source, for a law; with it four, as three must fall strictly
    'quarter': dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=2, intermediate_size=172),
    'third': dict(hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=256),
    'half': dict(hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=344),
}


class LossesAlong(Callback):
    """Measures the domains after a quarter, a half and three quarters of an arm's steps.

    ``record`` holds loss by domain, by step of the arm.
    """

    def __init__(self, work: Path, sizes: Sizes, total: int, first: int):
        self.data, self.sequences, self.first = work / 'data', sizes.on_the_way, first
        self.at = {round(total * share) for share in (0.25, 0.5, 0.75)}
        self.record: dict[int, dict[str, float]] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        step = self.first + state.timestamp.batch.value
        if step in self.at:
            self.record[step] = losses(state.model.model, self.data, self.sequences)


def losses(model: PreTrainedModel, data: Path, sequences: int | None = None) -> dict[str, float]:
    """Loss per domain of a model as it is, masks included, on the first so many sequences or all."""
    was_training = model.training
    model.eval()
    result = {
        name: domain_loss(model, itertools.islice(read_tokens(folder), sequences), 16, name)['loss']
        for name, folder in find_domains(data).items()
    }
    model.train(was_training)
    return result


def nats_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Mapping[str, list[str]]
) -> dict[str, float]:
    """Loss by domain on passages that do not depend on the vocabulary."""
    model.eval()
    sizes = {name: sum(len(passage.encode()) for passage in passages) for name, passages in text.items()}
    return {name: nats_and_tokens(model, tokenizer, passages)[0] / sizes[name] for name, passages in text.items()}


def law_references(params: int, work: Path, sizes: Sizes) -> dict[str, float]:
    """Losses that the source's family would reach at ``params`` parameters, by a law fitted to four of its sizes."""
    models = []
    for name, shape in {**FAMILY, 'source': {}}.items():
        folder = make_source(work, dataclasses.replace(sizes, source={**sizes.source, **shape}), name)
        model = AutoModelForCausalLM.from_pretrained(folder)
        measured = losses(model, work / 'data', sizes.sequences_evaluated)
        models.append({'name': name, 'params': model.num_parameters(), 'losses': measured})
    points = points_from_models(models, 'family')
    check_points(points)
    return {domain: float(fit_law(points, domain).predict(params)) for domain in DOMAINS}


def rotate(work: Path, sizes: Sizes, learn: int = 0) -> str:
    """Rotates the source by the arms' training text where that was not done yet; returns the folder's name."""
    name = f'rotated, learned in {learn} steps' if learn else 'rotated'
    if not (work / name).exists():
        learned = {'learn': learn, 'keep': sizes.target['hidden_size'], 'batch_tokens': LEARN_TOKENS} if learn else {}
        settings = RotationSettings(seq_len=sizes.max_seq_len, **sizes.rotation, **learned)
        rotate_source(work / 'source', work / 'data', work / name, settings, device=sizes.torch_device)
    return name


def source_losses(work: Path) -> dict[str, float]:
    """Loss per domain of the source on all held-out text, measured once."""
    kept = work / 'source_losses.json'
    if not kept.exists():
        measured = losses(AutoModelForCausalLM.from_pretrained(work / 'source'), work / 'data')
        kept.write_text(json.dumps(measured), encoding='utf-8')
    return json.loads(kept.read_text(encoding='utf-8'))


def prune(
    arm: Arm,
    seed: int,
    work: Path,
    sizes: Sizes,
    steps: int,
    folder: Path,
    source: str = 'source',
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Stage 1: writes the pruned model to ``folder`` and returns losses and cost."""
    source = work / source
    model = ShearedCausalLM(AutoTokenizer.from_pretrained(source), str(source), use_train_metrics=False)
    options = dict(arm.pruning)
    if 'learned' in source.name:  # the subspace comes first, whatever energy its directions have
        options['scores'] = {**options['scores'], 'hidden': 'position'}
    variant = VARIANTS[options.pop('variant', 'as it is')]
    pruning, meter = variant(**{'target': sizes.target, 'seed': seed, **options}), ComputeMeter()
    export = ExportPruned(str(folder), allow_unconverged=True, overwrite=True)
    teaching = _distillation(arm, work) if arm.prune_share == 1 else ()
    trainer = make_trainer(
        work,
        model,
        sizes,
        steps,
        sizes.learning_rate * arm.prune_rate,
        seed,
        algorithms=(pruning, *teaching),
        callbacks=(meter, export, *callbacks),
        alpha_f=arm.prune_decay,
        microbatch=arm.microbatch,
    )
    trainer.fit()
    model.cutter.set_masks(pruning.evaluation_masks())
    soft = losses(model.model, work / 'data', sizes.on_the_way)
    close_trainer(trainer)
    return {'soft': soft, 'prune_flops': meter.flops}


def prune_partly(arm: Arm, seed: int, work: Path, sizes: Sizes, steps: int, source: str) -> tuple[str, float]:
    """Prunes to the shapes between, ``steps`` each: the name of the last one's folder, and the cost."""
    arm, flops = dataclasses.replace(arm, prune_decay=1.0), 0.0
    for stage, target in enumerate(sizes.between, 1):
        name, own = f'stage-{stage}', dataclasses.replace(sizes, target=target)
        flops += prune(arm, seed + 200 * stage, work, own, steps, work / name, source)['prune_flops']
        source = name
    return source, flops


def _distillation(arm: Arm, work: Path) -> tuple[Distillation, ...]:
    if arm.distillation is None:
        return ()
    if arm.distillation.get('stored'):
        if not (work / 'taught').exists():
            teach(work / 'data', str(work / 'source'), work / 'taught', TeachSettings())
        return (Distillation(**arm.distillation),)
    return (Distillation(teacher=str(work / 'source'), **arm.distillation),)


def run(arm: Arm, seed: int, work: Path, sizes: Sizes, source: str = 'source') -> dict[str, Any]:
    """One arm with one seed, from the folder ``source`` below ``work`` to the losses at the end."""
    torch.manual_seed(seed)
    folder, data = work / 'pruned', work / 'data'
    shutil.rmtree(folder, ignore_errors=True)
    total = arm.total_steps(sizes.steps)
    prune_steps = round(total * arm.prune_share) or 1
    first = prune_steps if arm.prune_share else 0
    one_run = first == total
    record: dict[str, Any] = {'arm': arm.name, 'seed': seed, 'steps': total, 'rate': sizes.learning_rate}
    record.update(source=source, bfloat16=sizes.bfloat16)
    flops, before, stage_steps = 0.0, 0, round(0.07 * total)
    if arm.in_stages:
        source, flops = prune_partly(arm, seed, work, sizes, stage_steps, source)
        before = stage_steps * len(sizes.between)
        prune_steps -= before
    along = LossesAlong(work, sizes, total, before if one_run else first)
    record['prune_flops'] = flops
    if arm.pruning is None:
        config = AutoConfig.from_pretrained(work / source)
        config = with_shape(config, target_shape(config, sizes.target))
        AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(work / source).save_pretrained(folder)
    else:
        watching = (along,) if one_run else ()
        pruned = prune(arm, seed, work, sizes, prune_steps, folder, source, watching)
        record.update(soft=pruned['soft'], prune_flops=flops + pruned['prune_flops'])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ComposerHFCausalLM(tokenizer=tokenizer, pretrained_model_name_or_path=str(folder), use_train_metrics=False)
    model.to(sizes.torch_device)
    record['finished'] = losses(model.model, data, sizes.on_the_way)
    text = held_out_text(work)
    if one_run:
        record.update(along=along.record, final=losses(model.model, data), continue_flops=0.0)
        return {**record, 'nats_per_byte': nats_per_byte(model.model, tokenizer, text)}
    meter, callbacks, interval = ComputeMeter(), [], 0
    if arm.mixture is not None:
        reference = AutoModelForCausalLM.from_pretrained(work / 'source')
        references = losses(reference, data, sizes.sequences_evaluated)  # the ones that the run evaluates, no others
        if arm.references == 'none':
            references = dict.fromkeys(references, 0.0)
        elif arm.references == 'law':
            references = law_references(model.model.num_parameters(), work, sizes)
        elif arm.references == 'predicted':
            references = None
        callbacks.append(DynamicBatchLoading(references, update=arm.mixture, eta=arm.eta, max_eval_share=1.0))
        interval = f'{arm.round_batches}ba'
    trainer = make_trainer(
        work,
        model,
        sizes,
        total - first,
        sizes.learning_rate,
        seed + 100,
        arm.round_batches,
        interval,
        _distillation(arm, work),
        (meter, along, *callbacks),
        proportions=dict(zip(DOMAINS, SKEWED)) if arm.start == 'skewed' else None,
    )
    trainer.fit()
    close_trainer(trainer)
    record.update(along=along.record, final=losses(model.model, data), continue_flops=meter.flops)
    return {**record, 'nats_per_byte': nats_per_byte(model.model, tokenizer, text)}


def main() -> int:
    arms = {arm.name: (group, arm) for group, members in GROUPS.items() for arm in members}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for text, source and results')
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument('--smollm', action='store_true', help='prune SmolLM2-135M instead of the small source')
    sources.add_argument('--mixture', action='store_true', help='prune the experts of a small mixture instead')
    parser.add_argument(
        '--groups',
        nargs='+',
        choices=list(GROUPS),
        metavar='GROUP',
        help='of arms; default: ways, with --mixture experts',
    )
    parser.add_argument('--arms', nargs='+', choices=list(arms), metavar='ARM', help='instead of groups')
    parser.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3])
    parser.add_argument('--steps', type=int, help='budget of every arm; default: 600, with --smollm 100')
    parser.add_argument('--rate', type=float, help='peak learning rate; default: 2e-3, with --smollm 1e-3')
    parser.add_argument('--tokens', type=int, help='give the source fewer tokens first, and its MLPs the parameters')
    parser.add_argument('--rotate', action='store_true', help='prune the source in the principal basis of its stream')
    parser.add_argument('--learn', type=int, default=0, metavar='STEPS', help='learn the subspace to rotate to')
    parser.add_argument('--bfloat16', action='store_true', help='compute the steps of the arms in bfloat16')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write source losses and all records as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    toy = QUICK_MIXTURE if arguments.mixture else QUICK
    full = SMOLLM if arguments.smollm else MIXTURE if arguments.mixture else FULL
    sizes, work = toy if arguments.quick else full, arguments.work
    if arguments.steps is not None:
        sizes = dataclasses.replace(sizes, steps=arguments.steps)
    usual = sizes.learning_rate
    if arguments.rate is not None:
        sizes = dataclasses.replace(sizes, learning_rate=arguments.rate)
    groups = arguments.groups or ['experts' if arguments.mixture else 'ways']
    wanted = arguments.arms or [name for name, (group, _) in arms.items() if group in groups]
    if arguments.smollm and any(arms[name][1].references == 'law' for name in wanted):
        parser.error('references by a law need a family of sources, and SmolLM2 comes in one size here')
    make_source(work, sizes)
    if arguments.tokens is not None:
        held_out, (work, sizes) = held_out_text(work), make_trimmed(work, sizes, arguments.tokens)
        (work / 'held_out.json').write_text(json.dumps(held_out), encoding='utf-8')
    references = source_losses(work)
    results = work / 'results.jsonl'
    records = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    sizes = dataclasses.replace(sizes, bfloat16=arguments.bfloat16)
    defaults = {'rate': usual, 'source': 'source', 'bfloat16': False}
    settings = ('arm', 'seed', 'steps', *defaults)
    done = {tuple({**defaults, **record}[key] for key in settings) for record in records}
    rotated = arguments.rotate or arguments.learn
    name_of_source = rotate(work, sizes, arguments.learn) if rotated else 'source'
    for seed in arguments.seeds:
        for name in wanted:
            arm = arms[name][1]
            steps = arm.total_steps(sizes.steps)
            if (name, seed, steps, sizes.learning_rate, name_of_source, sizes.bfloat16) in done:
                continue
            records.append(run(arm, seed, work, sizes, name_of_source))
            with results.open('a') as stream:
                stream.write(json.dumps(records[-1]) + '\n')
            sys.stderr.write(f'{name}, seed {seed}: {mean(records[-1]["final"]):.3f}\n')
    sys.stdout.write(f'source: {mean(references):.3f} {json.dumps(references)}\n\n{table(records, references)}\n\n')
    sys.stdout.write(f'{domain_table(records, references)}\n')
    if arguments.output:
        everything = {'sizes': dataclasses.asdict(sizes), 'source': references, 'records': records}
        arguments.output.write_text(json.dumps(everything, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
