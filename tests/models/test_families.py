"""Tables of families that other packages bring."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import catalogue
import pytest
from transformers import CONFIG_MAPPING, LlamaConfig, LlamaForCausalLM

from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.models.counting import layout_of
from llmshearing.models.cuttable import Cutter
from llmshearing.models.families import families, family_of
from llmshearing.models.mixtures import MIXTURES, OwnKeys
from llmshearing.models.targets import target_shape
from tests.models.tiny import tiny_model


@pytest.fixture
def forgotten():
    """What a test registers is forgotten afterwards."""
    yield
    for name in ('mine', 'helium'):
        catalogue.REGISTRY.pop(('llmshearing', 'families', name), None)


def test_a_family_of_another_package_needs_no_change_of_ours(forgotten):
    model = tiny_model('llama')
    model.config.model_type = 'mine'
    with pytest.raises(ValueError, match="'mine' is not supported.*supported: .*llama"):
        family_of(model.config)
    families('mine', func=families.get('llama'))
    assert Cutter(model).family is families.get('llama')


def test_a_mixture_of_another_package_says_what_its_config_calls_experts(forgotten, monkeypatch):
    model = tiny_model('mixtral')
    model.config.model_type = 'mine'
    families('mine', func=families.get('mixtral'))
    with pytest.raises(ValueError, match="registered for model_type 'mine'.*of a mixture, what its config calls"):
        layout_of(model.config)
    monkeypatch.setitem(MIXTURES, 'mine', OwnKeys('num_local_experts', 'intermediate_size'))
    target = target_shape(model.config, {'num_local_experts': 4, 'hidden_size': 40})
    assert (target.num_experts, target.hidden_size) == (4, 40)
    assert Cutter(model).shape.num_experts == 6


SIZES = {'num_hidden_layers': 2, 'hidden_size': 48, 'num_attention_heads': 6, 'intermediate_size': 64, 'head_dim': 8}


@pytest.mark.parametrize('target', [{'hidden_size': 40}, {'num_attention_heads': 3}])
def test_a_table_that_does_not_fit_models_of_the_target_is_refused_before_training(target, forgotten):
    """Helium's output projection is hidden x hidden, whatever its config says of head_dim."""
    config = CONFIG_MAPPING['helium'](**SIZES, num_key_value_heads=6, vocab_size=64)
    families('helium', func=families.get('llama'))
    assert target_shape(config, {'intermediate_size': 40, 'num_hidden_layers': 1}).intermediate_size == 40
    with pytest.raises(ValueError, match=r"registered for model_type 'helium' .* does not fit .*has_head_dim=False"):
        target_shape(config, target)
    families('helium', func=dataclasses.replace(families.get('llama'), has_head_dim=False))
    assert target_shape(config, {'hidden_size': 24, 'num_attention_heads': 3}).hidden_size == 24


def test_a_table_that_leaves_what_shrinks_is_refused_before_training(forgotten):
    llama = families.get('llama')
    fixed = dataclasses.replace(llama.layer['mlp.up_proj'], rows=None)
    families('helium', func=dataclasses.replace(llama, layer={**llama.layer, 'mlp.up_proj': fixed}))
    config = CONFIG_MAPPING['helium'](**SIZES, num_key_value_heads=6, vocab_size=64)
    with pytest.raises(ValueError, match='leaves a weight of 64 x hidden as it is, which is 40 x hidden in one of'):
        target_shape(config, {'intermediate_size': 40})


def test_a_table_that_names_modules_that_are_not_there_is_refused(forgotten):
    llama = families.get('llama')
    families('helium', func=dataclasses.replace(llama, layer={**llama.layer, 'mlp.none': llama.layer['mlp.up_proj']}))
    config = CONFIG_MAPPING['helium'](**SIZES, num_key_value_heads=6, vocab_size=64)
    with pytest.raises(ValueError, match="registered for model_type 'helium' .*: it names a module that is not there"):
        target_shape(config, {'intermediate_size': 40})


class MineConfig(LlamaConfig):
    model_type = 'mine'


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig


@pytest.mark.skipif(not TRANSFORMERS_5, reason='configs of transformers 4 take any sizes')
def test_a_config_of_others_is_asked_whether_it_takes_the_target(forgotten):
    families('mine', func=families.get('llama'))
    config = MineConfig(**SIZES, num_key_value_heads=6, vocab_size=64)
    with pytest.raises(ValueError, match=r'takes no mine of the target .*not a multiple of the number of attention'):
        target_shape(config, {'hidden_size': 40})


PACKAGE = """
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llmshearing.models.dense_tables import LLAMA

TABLE = LLAMA


class TheirConfig(LlamaConfig):
    model_type = 'theirs'


class TheirModel(LlamaForCausalLM):
    config_class = TheirConfig


AutoConfig.register('theirs', TheirConfig)
AutoModelForCausalLM.register(TheirConfig, TheirModel)
"""
READ = """
import sys
from pathlib import Path
from llmshearing.checkpoints.checkpoint import _stored_config
from llmshearing.config.source import read_source
from llmshearing.models.counting import layout_of
config = read_source(sys.argv[1])
layout_of(config)
print(type(config).__name__, type(_stored_config(Path('it.pt'), config.to_dict())).__name__)
"""


@pytest.mark.parametrize('installed', [True, False])
def test_commands_read_a_type_that_an_installed_package_brings(tmp_path, installed):
    (tmp_path / 'source').mkdir()
    content = {'model_type': 'theirs', 'architectures': ['TheirModel'], 'vocab_size': 64, 'num_key_value_heads': 2}
    (tmp_path / 'source' / 'config.json').write_text(json.dumps({**SIZES, **content}))
    if installed:
        (tmp_path / 'their_family.py').write_text(PACKAGE)
        info = tmp_path / 'their_family-0.1.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: their-family\nVersion: 0.1\n')
        (info / 'entry_points.txt').write_text('[llmshearing_families]\ntheirs = their_family:TABLE\n')
    environment = {**os.environ, 'PYTHONPATH': f'{Path(__file__).parents[2]}{os.pathsep}{tmp_path}'}
    command = [sys.executable, '-c', READ, str(tmp_path / 'source')]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if installed:
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ['TheirConfig', 'TheirConfig']
    else:
        assert 'entry point of the group llmshearing_families' in done.stderr.splitlines()[-1]
