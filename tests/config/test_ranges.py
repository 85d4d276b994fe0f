"""Every number of every section has a range: what lies outside is refused by its place; shipped values lie inside."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llmshearing.config.ranges import ANY, RANGES, check_ranges, range_of

ROOT = Path(__file__).parents[2]
RUNS = [
    path for folder in ('demo', 'prune', 'continue', 'finetune') for path in (ROOT / 'yamls' / folder).glob('*.yaml')
]


def nested(place, value):
    for key in reversed(place.split('.')):
        value = {key: value}
    return value


@pytest.mark.parametrize('path', RUNS, ids=lambda path: path.stem)
def test_the_shipped_values_lie_inside(path):
    variables = {'variables': {'data': '/x', 'work': '/x', 'source': '/x', 'model': '/x'}}
    check_ranges(OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(path), variables), resolve=True))


@pytest.mark.parametrize(
    'place, bad, good',
    [
        ('algorithms.gradient_clipping.clipping_threshold', -1, 1.0),
        ('algorithms.gradient_clipping.clipping_threshold', 0, 1e-9),
        ('callbacks.speed_monitor.window_size', 0, 1),
        ('callbacks.optimizer_monitor.batch_log_interval', 0, 10),
        ('callbacks.scheduled_gc.batch_interval', 0, 100),
        ('callbacks.mono_checkpoint_saver.batch_interval', -3, 3),
        ('callbacks.run_timeout.timeout', 0, 60),
        ('callbacks.early_stopper.patience', -1, 2),
        ('callbacks.generate_callback.max_new_tokens', 10**6, 2048),
        ('train_loader.dataset.predownload', -1, 0),
        ('train_loader.dataset.round_batches', 0, 1),
        ('train_loader.dataset.shuffle_block_size', 0, 1),
        ('train_loader.dataset.domains.web.download_retry', -1, 0),
        ('train_loader.prefetch_factor', 0, 1),
        ('train_loader.num_workers', 0.5, 2),
        ('train_subset_num_batches', 0, -1),
        ('eval_subset_num_batches', -2, 1),
        ('optimizer.betas', [0.9, 1.5], [0.9, 0.95]),
        ('optimizer.betas', [0.9, 1.0], [0.9, 0.9999]),
        ('optimizer.betas', [-0.1, 0.95], [0.0, 0.95]),
        ('optimizer.momentum', 1.0, 0.0),
        ('optimizer.eps', 0, 1e-20),
        ('optimizer.eps', 1.0, 1e-3),
        ('optimizer.lr', 0.0, 1e-9),
        ('optimizer.weight_decay', -0.1, 0.0),
        ('optimizer.weight_decay', 1, 0.1),
        ('device_eval_batch_size', 10**9, 512),
        ('scheduler.alpha_f', -0.1, 0.0),
        ('loggers.tensorboard.flush_interval', 0, 1),
        ('loggers.mlflow.log_duplicated_metric_every_n_steps', 0, 1),
        ('seed', 2**32, 2**32 - 1),
        ('dist_timeout', 0, 0.5),
        ('an.algorithm.of.tomorrow', -1, 0),
    ],
)
def test_what_lies_outside_is_refused_by_its_place(place, bad, good):
    check_ranges(nested(place, good))
    with pytest.raises(ValueError, match=place.replace('.', r'\.')):
        check_ranges(nested(place, bad))


def test_a_rate_of_zero_is_for_frozen_weights():
    with pytest.raises(ValueError, match=r'optimizer.lr: 0 trains no weight; .*\.freeze_weights: true') as error:
        check_ranges({'optimizer': {'lr': 0}, 'algorithms': {'targeted_pruning': {}, 'gradient_clipping': None}})
    assert 'above 0' in str(error.value)
    check_ranges({'optimizer': {'lr': 0}, 'algorithms': {'targeted_pruning': {'freeze_weights': True}}})


def test_entries_of_lists_are_told_by_their_number():
    loaders = {'eval_loaders': [{'num_workers': 0}, {'num_workers': -1}]}
    with pytest.raises(ValueError, match=r'eval_loader\[1\]\.num_workers: expected a whole number from 0'):
        check_ranges(loaders)


def test_losses_and_free_places_may_be_negative():
    check_ranges({'metadata': {'offset': -3}, 'model': {'config_overrides': {'pad_token_id': -1}}})
    check_ranges(nested('callbacks.dynamic_batch_loading.reference_losses.web', -0.1))


def test_no_row_is_hidden_by_an_earlier_one():
    for number, (pattern, allowed) in enumerate(RANGES):
        example = pattern.replace('*', 'x')
        assert range_of(example) is allowed, f'row {number}, {pattern}, is never reached'
    assert ANY in dict(RANGES).values()
