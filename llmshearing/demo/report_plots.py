"""The report's three pictures, drawn from plain data: losses, mask counts against their targets, mixture weights.

Colours are the Okabe-Ito set, which colour-blind readers can tell apart; no picture needs colour alone, lines also
differ in dash or marker and bars carry their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmshearing.reports.drawing import BLACK, BLUE, DPI, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, figure_of

MODEL_COLOURS = {'source': GREY, 'pruned': ORANGE, 'continued': BLUE, 'scratch': VERMILION}
MODEL_LABELS = {
    'source': 'source',
    'pruned': 'pruned, as exported',
    'continued': 'pruned, then continued',
    'scratch': 'same shape from random initialisation',
}
LINE_STYLES = (
    (BLUE, '-', 'o'),
    (ORANGE, '--', 's'),
    (GREEN, '-.', '^'),
    (VERMILION, ':', 'D'),
    (PURPLE, '-', 'v'),
    (SKY, '--', 'P'),
    (BLACK, '-.', 'X'),
)


def plot_losses(path: Path, losses: Mapping[str, Mapping[str, float]]) -> None:
    """Bars of held-out loss, one group per domain and one bar per model.

    Args:
        path: PNG to write.
        losses: model (a key of ``MODEL_COLOURS``) to domain to nats per token; every model has the same domains.
    """
    models = [model for model in MODEL_COLOURS if model in losses]
    domains = list(losses[models[0]])
    figure, axes = figure_of(1, 1, max(7.0, 2.0 * len(domains) + 1.0), 4.2)
    axis = axes[0, 0]
    width = 0.84 / len(models)
    for i, model in enumerate(models):
        positions = np.arange(len(domains)) + (i - (len(models) - 1) / 2) * width
        bars = axis.bar(
            positions,
            [losses[model][domain] for domain in domains],
            0.92 * width,
            color=MODEL_COLOURS[model],
            label=MODEL_LABELS[model],
        )
        axis.bar_label(bars, fmt='%.2f', fontsize=7.5, padding=1.5)
    axis.set_xticks(range(len(domains)), domains)
    axis.tick_params(axis='x', length=0)
    axis.set_ylabel('held-out loss (nats per token)')
    axis.margins(y=0.1)
    figure.legend(loc='outside upper center', ncols=2 if len(models) > 3 else len(models), frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)


def plot_masks(path: Path, steps: Sequence[int], axes_counts: Mapping[str, Mapping[str, object]]) -> None:
    """Kept units over the steps of pruning, one panel per axis.

    Args:
        path: PNG to write.
        steps: training steps at which the counts were taken.
        axes_counts: prunable axis to ``source`` and ``target`` (units before and after) and to the series ``schedule``
            (the count asked for at that step), ``expected`` and ``hard``, each as long as ``steps``.
    """
    columns = 2 if len(axes_counts) > 1 else 1
    rows = -(-len(axes_counts) // columns)
    figure, axes = figure_of(rows, columns, 4.6 * columns, 2.9 * rows + 0.5)
    marker_every = max(1, len(steps) // 12)
    for axis, (name, counts) in zip(axes.flat, axes_counts.items()):
        axis.plot(steps, counts['schedule'], color=BLACK, linestyle='--', linewidth=1.3, label='target at this step')
        axis.plot(steps, counts['expected'], color=BLUE, linewidth=2.0, label='expected count')
        axis.plot(
            steps,
            counts['hard'],
            color=ORANGE,
            linewidth=1.2,
            marker='o',
            markersize=4,
            markevery=marker_every,
            label='hard count (gates above one half)',
        )
        axis.set_title(f'{name}: {counts["source"]:g} to {counts["target"]:g}', fontsize=10, loc='left')
        axis.set_ylabel('units kept', fontsize=9)
        axis.tick_params(labelsize=8)
        low = min(counts['target'], *counts['expected'], *counts['hard'])
        span = counts['source'] - low or 1
        axis.set_ylim(low - 0.08 * span, max(counts['source'], *counts['hard']) + 0.06 * span)
    for axis in list(axes.flat)[len(axes_counts) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel('pruning step', fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)


def plot_mixture(path: Path, stages: Mapping[str, Mapping[str, object]]) -> None:
    """Mixture weight of every domain over the steps, one panel per stage.

    Args:
        path: PNG to write.
        stages: stage to ``steps`` (where a weight begins to hold, plus the last step) and ``weights`` (domain to a
            series as long as ``steps``).
    """
    figure, axes = figure_of(1, len(stages), max(6.4, 4.8 * len(stages)), 3.6)
    highest = max(max(series) for stage in stages.values() for series in stage['weights'].values())
    for axis, (name, stage) in zip(axes.flat, stages.items()):
        for i, (domain, series) in enumerate(stage['weights'].items()):
            colour, dash, marker = LINE_STYLES[i % len(LINE_STYLES)]
            # Weights are constant between two updates.
            axis.step(
                stage['steps'],
                series,
                where='post',
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=4,
                linewidth=1.6,
                label=domain,
            )
        axis.set_title(name, fontsize=10, loc='left')
        axis.set_xlabel('step', fontsize=9)
        axis.set_ylim(0, 1.08 * highest)
        axis.tick_params(labelsize=8)
    axes[0, 0].set_ylabel('mixture weight', fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=min(5, len(labels)), frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)
