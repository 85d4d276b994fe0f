"""For every family: a pruning run of a tiny random model through the Trainer ends at exactly its target, by itself.

The way is the default one. A family of each kind of table goes the paper's way as well, which needs many more batches.
"""

import pytest
import torch
from composer.loggers import InMemoryLogger
from transformers import CONFIG_MAPPING, AutoConfig

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.export.model_folder import open_strictly
from llmshearing.models.families import families
from llmshearing.models.shapes import ModelShape, shape_of
from tests.models.tiny import MIXTURES, VARIANTS
from tests.tiny_run import tiny_source, tiny_trainer

WIDTHS = {'num_hidden_layers': 3, 'hidden_size': 36, 'intermediate_size': 40}
# gpt_neox has as many KV heads as heads, and its hidden size is heads x head_dim.
NEOX = {**WIDTHS, 'hidden_size': 32, 'num_attention_heads': 4}
TARGETS = {'gpt_neox': NEOX, 'gpt_neox-serial': NEOX, 'olmoe': NEOX}
PAPERS_WAY = ('llama', 'gemma3_text', 'gpt_neox', 'olmo2', 'phi3', 'qwen3_5_text', 'lfm2', 'granite_swa')
RUNS = [name for name in VARIANTS if name.split('-')[0] == name or name == 'gpt_neox-serial']


def test_no_family_is_left_out():
    assert {name.split('-')[0] for name in RUNS} == {name for name in families.get_all() if name in CONFIG_MAPPING}


@pytest.mark.parametrize(
    ('variant', 'learner', 'batches'),
    [(name, 'progressive', 15) for name in RUNS] + [(name, 'lagrangian', 250) for name in RUNS if name in PAPERS_WAY],
)
def test_a_run_ends_at_exactly_its_target(variant, learner, batches, tmp_path):
    source = tiny_source(tmp_path / 'source', variant)
    target = TARGETS.get(variant, {**WIDTHS, 'num_key_value_heads': 1})
    if variant in MIXTURES:
        target = {**target, 'hidden_size': 32, 'num_experts': 4}
    pruning, log = TargetedPruning(target, tolerance=0.05, mask_learning=learner), InMemoryLogger()
    export = ExportPruned(str(tmp_path / 'out'))  # refuses masks that did not get there
    tiny_trainer(source, [pruning], batches=batches, callbacks=[export], loggers=[log]).fit()
    before, after = shape_of(AutoConfig.from_pretrained(source)), shape_of(AutoConfig.from_pretrained(tmp_path / 'out'))
    heads = target.get('num_attention_heads', before.group_size)
    kv_heads = heads if before.group_size == 1 else 1
    experts = (4, before.num_experts_per_tok) if before.num_experts else ()
    assert after == ModelShape(3, target['hidden_size'], heads, kv_heads, 40, before.head_dim, *experts)
    assert log.data['export/logit_difference'][-1][1] <= 1e-5
    assert all(torch.isfinite(parameter).all() for parameter in open_strictly(tmp_path / 'out').parameters())
    losses = [value for _, value in log.data['loss/train/total']]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_lagrangian_way_prunes_all_of_a_mixture_but_its_experts(tmp_path):
    source = tiny_source(tmp_path / 'source', 'mixtral')
    target = {'hidden_size': 40, 'intermediate_size': 40}
    with pytest.raises(ValueError, match='lagrangian does not prune experts: .* Use progressive or one_shot'):
        refused = TargetedPruning({**target, 'num_experts': 4}, mask_learning='lagrangian')
        tiny_trainer(source, [refused], batches=2)
    export = ExportPruned(str(tmp_path / 'out'))
    pruning = TargetedPruning(target, tolerance=0.05, mask_learning='lagrangian')
    tiny_trainer(source, [pruning], batches=250, callbacks=[export]).fit()
    after = shape_of(AutoConfig.from_pretrained(tmp_path / 'out'))
    assert (after.hidden_size, after.intermediate_size, after.num_experts) == (40, 40, 6)
