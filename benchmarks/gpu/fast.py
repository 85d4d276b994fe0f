"""``fast``: what a pruning step costs on the card, beside the steps it should cost as much as.

Every case builds one model with random weights in bfloat16, alone on the card, and measures one kind of step: forward
and backward of one micro-batch, for pruning with the masks installed before and their gradients read after it. The rows
at the end set the kinds beside each other. ``prune_step.py`` defines the steps; this measures them on a GPU.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from prune_step import target_masks
from torch import Tensor

from benchmarks.gpu import timing
from benchmarks.gpu.cases import Case, NotThere, Row
from benchmarks.gpu.machine import matmul_rate
from benchmarks.gpu.pairs import LARGE, SMALL, TOY, Setting
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.steps import COMPILED, COURSE, MAIN, ON_THE_WAY, PRUNING, WITH_NOISE, Kind, noisy_masks
from benchmarks.gpu.trained import RUNS, Run, measure_run
from llmshearing.models.cuttable import Cutter
from llmshearing.models.shapes import with_shape

__all__ = ['cases']

DATASHEET = {'H100 80GB HBM3': 989e12, 'H200': 989e12}  # dense bfloat16 of SXM cards; those on PCIe are slower
MATMUL = 'matrix product'
RATIOS = (
    ('all kept / dense', PRUNING['all kept'], 'dense source', 1.03),
    ('at target / target model', PRUNING['target'], 'target model', 1.05),
    ('at target / activation masking', PRUNING['target'], 'activation masking', None),
    ('at target / dense', PRUNING['target'], 'dense source', None),
    ('plain / continued pre-training', 'training the target, plain llm-foundry', 'continued pre-training', 0.98),
    (
        'pruning run at target / continued pre-training',
        'pruning run, progressive, at target',
        'continued pre-training',
        None,
    ),
)
WHOLE_RUN, WHOLE_RUN_AIM = 'whole run / activation-masked run', 0.35
WARMUP_SHARE = 0.2  # of a pruning run, as in the paper


def measure(kind: Kind, setting: Setting, quick: bool, rows: Mapping) -> Row:
    """One kind of step: time, rates, peak, waits and kernels."""
    step, device = kind.build(setting), setting.device
    taken = timing.times(step, device, 1 if quick else 2, 1 if quick else 5)
    seconds = statistics.median(taken)
    row: Row = {'ms': 1000 * seconds, 'from': 1000 * min(taken), 'to': 1000 * max(taken)}
    if kind.counted is not None:
        rate = setting.flops(kind.counted) / seconds
        row |= {'tokens/s': round(setting.tokens / seconds), 'TFLOP/s': rate / 1e12}
        if 'TFLOP/s' in rows.get(MATMUL, {}):
            row['of matmul rate'] = row['TFLOP/s'] / rows[MATMUL]['TFLOP/s']
        if device == 'cuda':
            sheet = next((flops for name, flops in DATASHEET.items() if name in torch.cuda.get_device_name()), None)
            row |= {'of datasheet': rate / sheet} if sheet else {}
    if device == 'cuda':
        row |= {f'{name} GiB': value / 2**30 for name, value in timing.peak_bytes(step, device).items()}
        waits = timing.synchronisations(step, device)
        row |= {'waits': sum(waits.values()), 'where it waits': waits, **timing.launches(step, device)}
    return row


def of_matmul(settings: Settings, rows: Mapping) -> Row:
    size = 256 if settings.quick else 8192
    rate = matmul_rate(settings.device, size, torch.bfloat16)
    return {'size': size, 'TFLOP/s': rate / 1e12}


def ratios(label: str, rows: Mapping[str, Row]) -> Row:
    """Ratios of medians, and the cost of a whole run whose warm-up is a fifth of it."""
    found, aims = {}, {name: aim for name, _, _, aim in RATIOS if aim is not None} | {WHOLE_RUN: WHOLE_RUN_AIM}
    own = {name.removeprefix(f'{label}: '): row for name, row in rows.items() if name.startswith(label)}
    ms = {name: row['ms'] for name, row in own.items() if 'ms' in row}
    for name, above, below, _ in RATIOS:
        if above in ms and below in ms:
            found[name] = ms[above] / ms[below]
    way = [PRUNING['all kept'], *(f'pruning, {share:.0%} of the warm-up' for share in COURSE), PRUNING['target']]
    if all(name in ms for name in (*way, 'activation masking')):
        parts = [ms[name] / ms['activation masking'] for name in way]
        warmup = statistics.fmean((a + b) / 2 for a, b in itertools.pairwise(parts))
        found[WHOLE_RUN] = WARMUP_SHARE * warmup + (1 - WARMUP_SHARE) * parts[-1]
    if not found:
        raise NotThere('no two kinds of step to compare')
    told = (f'{name} {value:.3f}' + (f' (aim {aims[name]})' if name in aims else '') for name, value in found.items())
    return {'summary': '; '.join(told), 'ratios': found}


def cut_alone(setting: Setting, quick: bool, rows: Mapping) -> Row:
    """Time of all cuts of a step at the target, forward and backward: what a faster cut could save."""
    model = setting.model()
    cutter, masks = Cutter(model), target_masks(*setting.shapes)
    cutter.set_masks(masks)
    cutter.bind()
    values = cutter._values
    gradients: dict[tuple, Tensor] = {}

    def cut() -> None:
        for module in cutter._modules.values():
            if module.cut is None:
                continue
            weight = module.cut.parameters(module._parameters)['weight']
            if weight is not module.weight:
                gradient = gradients.setdefault(tuple(weight.shape), torch.ones_like(weight))
                torch.autograd.grad(weight, [module.weight, values], gradient, retain_graph=True, allow_unused=True)

    row: Row = {'ms': 1000 * timing.median_seconds(cut, setting.device, 1 if quick else 3, 1 if quick else 7)}
    return row | ({} if setting.device == 'cpu' else timing.launches(cut, setting.device))


def installing(setting: Setting, quick: bool, rows: Mapping) -> Row:
    """Host time of a step that no kernel hides: installing masks and binding them."""
    model = setting.model()
    cutter, draws = Cutter(model), itertools.cycle(noisy_masks(*setting.shapes))

    def install() -> None:
        cutter.set_masks(next(draws))
        cutter.bind()

    return {'ms': 1000 * timing.median_seconds(install, 'cpu', 2, 3 if quick else 15)}


def trained(run: Run, setting: Setting, work: Path, rows: Mapping) -> Row:
    """Steps of a whole run."""
    if setting.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    config = with_shape(setting.config, setting.shapes[1], True) if run.of_target else setting.config
    length = min(setting.pair.length, setting.tokens)
    return measure_run(run, config, dict(setting.pair.target), setting.tokens, length, setting.device, work)


def _cases_of(setting: Setting, settings: Settings, kinds: tuple[Kind, ...], more: bool, runs: bool) -> list[Case]:
    """Kinds of steps of one setting; ``more``: what cutting and installing masks cost alone; ``runs``: whole runs."""
    label = setting.label
    found = [Case(f'{label}: {kind.name}', functools.partial(measure, kind, setting, settings.quick)) for kind in kinds]
    if more:
        found.append(Case(f'{label}: cuts alone', functools.partial(cut_alone, setting, settings.quick)))
        found.append(Case(f'{label}: masks installed', functools.partial(installing, setting, settings.quick)))
    if runs:
        found += [
            Case(f'{label}: {name}', functools.partial(trained, run, setting, settings.work))
            for name, run in RUNS.items()
        ]
    return [*found, Case(f'{label}: ratios', functools.partial(ratios, label), cheap=True)]


def cases(settings: Settings) -> list[Case]:
    """All cases of the part, the most telling first."""
    first = [Case(MATMUL, functools.partial(of_matmul, settings))]
    every = (*MAIN, *ON_THE_WAY, *WITH_NOISE)
    if settings.quick:
        return first + _cases_of(Setting(TOY, TOY.tokens[0], settings.device), settings, every, True, True)
    small = [Setting(SMALL, tokens, settings.device) for tokens in SMALL.tokens]
    large = [Setting(LARGE, tokens, settings.device) for tokens in LARGE.tokens]
    found = first + _cases_of(small[0], settings, every, True, True)
    found += _cases_of(large[0], settings, (*MAIN, *ON_THE_WAY), True, False)
    for setting in (large[1], small[1], small[2], large[2]):
        found += _cases_of(setting, settings, MAIN, False, False)
    compiled = (
        Case(f'{small[0].label}: {kind.name}', functools.partial(measure, kind, small[0], False)) for kind in COMPILED
    )
    return [*found, *compiled]
