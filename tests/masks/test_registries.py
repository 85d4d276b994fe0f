"""Learners and scoring methods of others, registered in Python or by an entry point, and what all learners keep to."""

import os
import subprocess
import sys
from pathlib import Path

import catalogue
import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.dynamic_batch_loading.updates import Round, find_rule
from llmshearing.masks.axes import plan_axes
from llmshearing.masks.learner import LearnerSettings, MaskLearner, learner_class, mask_learners
from llmshearing.masks.one_shot import OneShotMasks
from llmshearing.masks.scores import Calibration, ScoringMethod, method_by_axis, score_units, scoring_methods
from llmshearing.masks.state import PruningState, find_pruning_state, read_pruning_state
from llmshearing.models.cuttable import Cutter
from llmshearing.models.families import family_of
from llmshearing.models.shapes import ModelShape, resolve_target
from tests.models.tiny import tiny_model
from tests.tiny_run import sequences_spec, tiny_source, tiny_trainer

ROOT = Path(__file__).parents[2]
TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
PLUGIN = """
import torch
from llmshearing.masks.one_shot import OneShotMasks
from llmshearing.masks.scores import ScoringMethod
from llmshearing.models.units import mask_shapes


class FirstUnits(OneShotMasks):
    needs_scores = False


def rising(calibration, axes):
    return {axis: torch.rand(mask_shapes(calibration.cutter.shape)[axis]) for axis in axes}


RISING = ScoringMethod(rising, ('hidden',))
"""
USE = """
import sys
from llmshearing.masks.learner import learner_class, mask_learners
from llmshearing.masks.scores import method_by_axis
assert list(mask_learners.get_all()) == ['first', 'lagrangian', 'progressive', 'one_shot']
assert learner_class('first').__name__ == 'FirstUnits'
assert method_by_axis({'hidden': 'rising'}, {'hidden': None}) == {'hidden': 'rising'}
try:
    method_by_axis({'layer': 'rising'}, {'layer': None})
except ValueError as error:
    print(error)
assert not {'composer', 'llmfoundry', 'streaming'} & set(sys.modules)
"""


@pytest.fixture
def registered():
    """Names of the test that are taken out again."""
    names = [('llmshearing', 'mask_learners', 'every_second'), ('llmshearing', 'scoring_methods', 'rising')]
    yield
    for name in names:
        catalogue.REGISTRY.pop(name, None)


def test_a_learner_and_a_score_of_a_third_party_prune_a_run_and_are_read_back(tmp_path, registered):
    @mask_learners('every_second')
    class EverySecond(OneShotMasks):
        """Prefers every second unit."""

        needs_scores = False

        def start_from(self, scores):
            super().start_from({axis: value + (torch.arange(value.shape[-1]) % 2) for axis, value in scores.items()})

    def rising(calibration, axes):
        size = calibration.cutter.shape.hidden_size
        return {'hidden': torch.arange(size) / size}

    scoring_methods('rising', func=ScoringMethod(rising, ('hidden',)))
    pruning = TargetedPruning({'hidden_size': 24}, mask_learning='every_second', scores='rising')
    source = tiny_source(tmp_path / 'source')
    trainer = tiny_trainer(source, [pruning], batches=2, eval_dataloader=sequences_spec(8, 4))
    trainer.fit()
    want = (torch.arange(48) % 2).float()
    assert torch.equal(pruning.frozen_masks['hidden'], want)
    state = read_pruning_state(pruning.state_dict(), trainer.state.model.config)
    assert torch.equal(state.final_masks()['hidden'], want) and isinstance(state.learner, EverySecond)


def test_a_bare_function_is_no_scoring_method(registered):
    scoring_methods('rising', func=lambda calibration, axes: {})
    with pytest.raises(ValueError, match='rising is registered as a function, expected a ScoringMethod; register'):
        method_by_axis('rising', ['hidden'])


@pytest.mark.parametrize(
    'ask, group',
    [
        (lambda: learner_class('theirs'), 'mask_learners'),
        (lambda: method_by_axis('theirs', ['hidden']), 'scoring_methods'),
        (lambda: find_rule('theirs'), 'update_rules'),
        (lambda: family_of(LlamaConfig(model_type='theirs')), 'families'),
    ],
)
def test_who_names_a_part_that_is_not_there_is_told_how_another_package_brings_it(ask, group):
    with pytest.raises(ValueError, match=f'package is installed with an entry point of the group llmshearing_{group};'):
        ask()


def test_the_recipes_of_the_contributing_page_run(monkeypatch):
    monkeypatch.setattr(catalogue, 'REGISTRY', dict(catalogue.REGISTRY))
    blocks = (ROOT / 'CONTRIBUTING.md').read_text().split('```python\n')[1:]
    for block in blocks:
        exec(block.split('```')[0], {})
    model = tiny_model('llama')
    methods = method_by_axis({'hidden': 'first_units'}, ['hidden'])
    scores = score_units(methods, Calibration(Cutter(model), []))['hidden']
    assert scores.tolist() == sorted(scores.tolist(), reverse=True) and len(scores) == model.config.hidden_size
    now = Round(np.array([0.5, 0.5]), np.array([0.5, 0.5]), np.array([3.0, 2.0]), np.array([2.0, 2.0]), 1)
    assert find_rule('linear').function(now, [], 1.0)[0].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_entry_points_are_found(tmp_path):
    (tmp_path / 'their_plugin.py').write_text(PLUGIN)
    info = tmp_path / 'their_plugin-0.1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: their-plugin\nVersion: 0.1\n')
    (info / 'entry_points.txt').write_text(
        '[llmshearing_mask_learners]\nfirst = their_plugin:FirstUnits\n'
        '[llmshearing_scoring_methods]\nrising = their_plugin:RISING\n'
    )
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path}'}
    done = subprocess.run([sys.executable, '-c', USE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'scores: rising does not apply to layer; it applies to hidden.'


@pytest.mark.parametrize('name', ['lagrangian', 'progressive', 'one_shot'])
def test_every_learner_of_ours_keeps_to_the_protocol(name):
    learner = learner_class(name)
    members = {key for key in {**MaskLearner.__dict__, **MaskLearner.__annotations__} if not key.startswith('_')}
    assert members - {'plans'} <= set(dir(learner))
    source = ModelShape(4, 48, 6, 2, 64, 8)
    plans = plan_axes(source, resolve_target(source, TARGET))
    made = learner(plans, LearnerSettings(seed=5))
    generator = torch.Generator().manual_seed(1)
    made.start_from({axis: torch.rand(plan.mask_shape, generator=generator) for axis, plan in plans.items()})
    made.draw(0, 0.0)
    made.update({axis: torch.rand(plan.mask_shape, generator=generator) for axis, plan in plans.items()}, 0.5, 1.0)
    made.draw(1, 0.5)
    read = learner.restore(plans, made.state_dict())
    for counts in ('expected', 'target'):
        for axis, mask in made.deterministic(counts).items():
            assert torch.equal(read.deterministic(counts)[axis], mask) and mask.dtype == torch.float32
    for axis, plan in plans.items():
        kept = plan.rows(made.deterministic('target')[axis] > 0).sum(1)
        assert (kept == plan.keep).all() and made.expected_kept()[axis].shape == plan.mask_shape
        assert len(made.hard_counts()[axis]) == len(kept)
    with pytest.raises(ValueError, match=r"the checkpoint's hidden mask: got none, expected shape \(48,\)"):
        learner.restore(plans, {**made.state_dict(), 'log_alpha': {}, 'importance': {}})


def test_one_shot_reports_what_it_keeps(tmp_path):
    pruning = TargetedPruning(TARGET, mask_learning='one_shot', scores='magnitude')
    tiny_trainer(tiny_source(tmp_path / 'source'), [pruning], batches=1, eval_dataloader=sequences_spec(8, 4)).fit()
    for report in pruning.reports():
        assert report.expected == report.expected_min == report.expected_max == report.hard == report.target


class RenamedByItsUser(TargetedPruning):
    """Another name, the same masks."""


@pytest.mark.parametrize('first, then', [(TargetedPruning, RenamedByItsUser), (RenamedByItsUser, TargetedPruning)])
def test_a_subclass_goes_on_with_the_masks_of_another_and_the_state_says_what_it_is(tmp_path, first, then):
    source = tiny_source(tmp_path / 'source')
    settings = {'batches': 4, 'save_folder': str(tmp_path / 'save'), 'save_filename': 'ba{batch}.pt', 'run_name': 'r'}
    pruning = first(TARGET, warmup='3ba')
    trainer = tiny_trainer(source, [pruning], save_interval='1ba', **settings)
    trainer.fit(duration='2ba')
    trainer.close()
    saved = torch.load(tmp_path / 'save' / 'ba2.pt', weights_only=False)['state']['algorithms']
    assert find_pruning_state(dict(saved))['kind'] == 'llmshearing.pruning'
    again = then(TARGET, warmup='3ba')
    tiny_trainer(source, [again], save_interval='4ba', load_path=str(tmp_path / 'save' / 'ba2.pt'), **settings)
    for axis, value in pruning.learner.importance.items():
        assert torch.equal(again.learner.importance[axis], value)


def test_a_state_is_pruning_by_its_kind_or_its_keys_and_there_is_one():
    old = {'version': 2, 'source': {}, 'target': {}, 'learner': {}}
    assert find_pruning_state({'Distillation': {}, 'Any': {'kind': 'llmshearing.pruning'}}) is not None
    assert find_pruning_state({'TargetedPruning': old}) is old
    assert find_pruning_state({'TargetedPruning': {}}) is None
    with pytest.raises(ValueError, match='the masks of 2 algorithms'):
        find_pruning_state({'a': old, 'b': {'kind': 'llmshearing.pruning'}})
    assert set(PruningState('progressive').state_dict()) == {'kind', 'version'}
