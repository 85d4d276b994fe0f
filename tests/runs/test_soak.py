"""Thousands of tiny steps with updates of the mixture, evaluations and checkpoints: nothing grows."""

from __future__ import annotations

import gc
import json
import os
import statistics
import threading
from pathlib import Path

import pytest
from composer.core import Callback

from llmshearing.data import shared_order
from tests.runs.stages import ROUND, make_world, read_metrics, start

STEPS, EVERY, SAVE = 2000, 40, 80


class Health(Callback):
    """Writes what this process holds, every so many batches."""

    def __init__(self, path: Path):
        self.path = path

    def batch_checkpoint(self, state, logger):
        if state.timestamp.batch.value % EVERY:
            return
        gc.collect()  # what is garbage does not count
        status = dict(line.split(':\t', 1) for line in Path('/proc/self/status').read_text().splitlines())
        links = sorted((self.path.parent / 'save').glob('ba*.pt'), key=os.path.getmtime)
        with self.path.open('a') as file:
            file.write(
                json.dumps(
                    {
                        'batch': state.timestamp.batch.value,
                        'rss_mb': int(status['VmRSS'].split()[0]) / 1024,
                        'files': len(os.listdir('/proc/self/fd')),
                        'threads': threading.active_count(),
                        'native_threads': int(status['Threads']),
                        'shared': len(
                            {
                                line.split()[-1]
                                for line in Path('/proc/self/maps').read_text().splitlines()
                                if '/dev/shm/' in line
                            }
                        ),
                        'checkpoint': links[-1].stat().st_size if links else 0,
                        'checkpoints': len(links),
                    }
                )
                + '\n'
            )


def growth_per_thousand(health: list[dict], field: str) -> float:
    """Median over the second half of the run, so that a table that doubles once does not count as growth."""
    values = [entry[field] for entry in health[len(health) // 2 :]]
    return 1000 / EVERY * statistics.median(after - before for before, after in zip(values, values[1:]))


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['prune', 'continue'])
@pytest.mark.parametrize('workers', [0, 1])
def test_nothing_grows(tmp_path, stage, workers):
    work = make_world(tmp_path)
    place = tmp_path / 'run'
    process = start(
        stage,
        work,
        place,
        batches=STEPS,
        workers=workers,
        callbacks=[Health(place / 'health.jsonl')],
        save_interval=f'{SAVE}ba',
        save_num_checkpoints_to_keep=2,
        eval_interval=f'{ROUND}ba',
        pruning={'warmup': '1000ba', 'freeze_masks_after': None},
    )
    process.join(1800)
    assert process.exitcode == 0
    health = [json.loads(line) for line in (place / 'health.jsonl').read_text().splitlines()]
    assert health[-1]['batch'] == STEPS
    metrics = read_metrics(place / 'metrics.jsonl')
    assert sum('mixture/weight/python' in values for values in metrics.values()) == STEPS // ROUND
    later = health[len(health) // 4 :]
    for field in ('files', 'threads', 'native_threads', 'shared', 'checkpoints'):
        assert max(entry[field] for entry in later) <= min(entry[field] for entry in later) + 1, (field, later)
    # The timestamps of all checkpoints, which Composer keeps in each, are the only thing in them that grows.
    saves = STEPS // SAVE
    assert health[-1]['checkpoint'] - later[0]['checkpoint'] < 400 * saves
    assert growth_per_thousand(health, 'rss_mb') < 4, [entry['rss_mb'] for entry in health]
    assert health[-1]['rss_mb'] - later[0]['rss_mb'] < 30, [entry['rss_mb'] for entry in health]
    (tmp_path / 'summary.json').write_text(
        json.dumps(
            {
                'rss_mb': [health[len(health) // 4]['rss_mb'], health[-1]['rss_mb']],
                'rss_growth_mb_per_1000': growth_per_thousand(health, 'rss_mb'),
                **{
                    field: [later[0][field], health[-1][field]]
                    for field in ('files', 'threads', 'native_threads', 'shared', 'checkpoint')
                },
            },
            indent=2,
        )
    )
    shared_order.remove_dead_runs()
