"""Logs of made-up runs, as the metrics_file logger writes them, with every kind of metric a report shows."""

from __future__ import annotations

import json
import math
from pathlib import Path

DOMAINS = ('code', 'web <b>', 'law')
TOKENS_PER_BATCH = 1024
SOURCE = {
    'num_hidden_layers': 6,
    'hidden_size': 96,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'intermediate_size': 200,
    'head_dim': 12,
}
TARGET = {
    **SOURCE,
    'num_hidden_layers': 4,
    'hidden_size': 64,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'intermediate_size': 120,
}
AXES = {'layer': (6, 4), 'hidden': (96, 64), 'kv_group': (4, 2), 'intermediate': (200, 120)}


def eval_loss(batch: int, domain: int, offset: float = 0.0) -> float:
    """Loss of a made-up evaluation."""
    return 2.0 + domain + offset + 3.0 * (batch + 1) ** -0.5


def entries(pruning: bool, batches: int = 40, every: int = 10, offset: float = 0.0, ended: bool = True) -> list[dict]:
    """The lines of a log, in the order in which a run writes them.

    Composer counts a batch before its BATCH_END, so what callbacks measure there (``lr_monitor``, ``speed_monitor``) is
    of one batch more than the loss of that batch. A run that has ended closes with its clock.
    """
    lines: list[dict] = []
    for batch in range(batches):
        lines.append({'batch': batch, 'time/batch': batch, 'time/token': batch * TOKENS_PER_BATCH})
        share = min(1.0, batch / 20)
        if pruning:
            numbers = {'pruning/penalty': 0.5 * share, 'pruning/expected_sparsity': 0.6 * share}
            for axis, (units, target) in AXES.items():
                now = units - (units - target) * share
                numbers |= {
                    f'pruning/{axis}/{kind}': value
                    for kind, value in {
                        'target': now,
                        'expected': now + 0.25,
                        'hard': math.ceil(now),
                        'penalty': 0.1 * share,
                        'lambda': batch / 10,
                        'phi': batch / 5,
                    }.items()
                }
            lines.append({'batch': batch, **numbers})
        lines.append({'batch': batch, 'loss/train/total': 6.0 + offset - 2 * share})
        lines.append(
            {
                'batch': batch + 1,
                'lr-DecoupledAdamW/group0': 1e-3 * share,
                'throughput/tokens_per_sec': 5000.0 + batch,
                'time/train': (batch + 1) / 100,
                'time/val': (batch + 1) / 400,
                'time/total': (batch + 1) / 80,
            }
        )
        if (batch + 1) % every == 0:
            for i, name in enumerate(DOMAINS):
                loss = eval_loss(batch + 1, i, offset)
                lines.append({'batch': batch + 1, f'metrics/eval/{name}/LanguageCrossEntropy': loss})
            lines.append(
                {
                    'batch': batch + 1,
                    'mixture/eval_share': 0.2,
                    **{
                        f'mixture/{kind}/{name}': value
                        for i, name in enumerate(DOMAINS)
                        for kind, value in {
                            'weight': (i + 1) / 6,
                            'loss': eval_loss(batch + 1, i, offset),
                            'gap': eval_loss(batch + 1, i, offset) - 1.5 - i,
                            'share': (i + 1) / 6,
                            'passes': (batch + 1) * (i + 1) / 100,
                        }.items()
                    },
                }
            )
    if ended:
        lines.append({'batch': batches, 'time/batch': batches, 'time/token': batches * TOKENS_PER_BATCH})
    return lines


def pruning_record(live: bool = False) -> dict:
    """What pruning.json holds of such a run; with the callback's masks if ``live``."""
    kept = {
        str(layer): {'heads': [0, 1, 6, 7], 'kv_heads': [0, 3], 'intermediate': list(range(layer, layer + 120))}
        for layer in (0, 1, 3, 5)
    }
    record = {
        'source_shape': SOURCE,
        'target_shape': TARGET,
        'mask_learning': 'lagrangian',
        'batches': 40,
        'tokens': 40960,
        'axes': [
            {
                'axis': axis,
                'units': units,
                'target': target,
                'expected': target + 0.25,
                'expected_min': target,
                'expected_max': target + 1,
                'hard': target,
            }
            for axis, (units, target) in AXES.items()
        ],
        'kept': {'hidden': list(range(64)), 'layers': kept},
    }
    if live:
        layers = [float(layer in (0, 1, 3, 5)) for layer in range(6)]
        record['mask_values'] = {
            'layer': layers,
            'hidden': [0.9] * 64 + [0.1] * 32,
            'kv_group': [[0.9, 0.1, 0.2, 0.8]] * 6,
            'intermediate': [[0.6] * 64] * 6,
        }
    return record


def write_log(path: Path, pruning: bool, **settings) -> Path:
    """Writes a log; settings as :func:`entries`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries(pruning, **settings)))
    return path


def write_run(folder: Path, offset: float = 0.0) -> Path:
    """A folder as a pruning run and the run after it leave it: two logs, the exported record, the source's losses, a
    note."""
    write_log(folder / 'prune_metrics.jsonl', pruning=True, offset=offset)
    log = write_log(folder / 'continue_metrics.jsonl', pruning=False, offset=offset)
    (folder / 'pruned').mkdir()
    (folder / 'pruned' / 'pruning.json').write_text(json.dumps(pruning_record()))
    losses = {name: 1.5 + i for i, name in enumerate(DOMAINS)}
    (folder / 'reference_losses.json').write_text(json.dumps({'reference_losses': losses}))
    note = {
        'version': 1,
        'batch': 40,
        'tokens': 40960,
        'elapsed_share': 0.5,
        'max_duration': '80ba',
        'pruning': None,
        'source': {'parameters': 1000000, 'shape': SOURCE},
        'result': {'parameters': 400000, 'shape': TARGET},
    }
    (folder / 'continue_run.json').write_text(json.dumps(note))
    return log
