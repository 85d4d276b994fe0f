"""Mutations of the shipped YAMLs: each either builds, or ends in one ValueError that names the key;
never in a library's traceback.

A case goes the way of a real run as far as nothing is trained: llm-foundry's own reading of the configuration (with our
checks among its transforms), its validation, then algorithms, callbacks, loggers, scheduler, tokenizer and, where the
change is in a loader, the loaders.
"""
import copy
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llmfoundry.command_utils.train import validate_config
from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.utils.builders import (
    build_algorithm,
    build_callback,
    build_logger,
    build_optimizer,
    build_scheduler,
    build_tokenizer,
)
from llmfoundry.utils.config_utils import (
    TRAIN_CONFIG_KEYS,
    TrainConfig,
    make_dataclass_and_log_config,
    process_init_device,
)
from llmfoundry.utils.exceptions import BaseContextualError
from omegaconf import OmegaConf

from tests.tiny_data import DOMAINS, tiny_data
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[2]
BASES = (
    'demo/prune.yaml',
    'demo/continue.yaml',
    'prune/llama2_7b_to_1.3b.yaml',
    'continue/llama2_1.3b.yaml',
    'finetune/instruct.yaml',
)
TINY_STEPS = {
    'max_seq_len': 16,
    'max_duration': '2ba',
    'eval_interval': '2ba',
    'global_train_batch_size': 4,
    'device_train_microbatch_size': 2,
    'precision': 'fp32',
    'fsdp_config': None,
}
TINY_TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}
HOSTILE = (
    None, True, False, 0, 1, -1, -7, 3, 10**9, 0.5, -0.5, 1e30, float('nan'), float('inf'), '', 'zzz', '-1ba', '5xx',
    'nanba', '0ba', '1e400tok', '../../etc', [], [1, 'a'], [None], {}, {'zzz': 1}, {'python': 'x'}, [{}], '\0',
    'é' * 40,
)


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
    """Plain configurations of the shipped YAMLs over a tiny source and tiny data; each would run."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Streaming keeps files open until the end
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if most != resource.RLIM_INFINITY else 65536, most))
    world = tmp_path_factory.mktemp('hostile')
    tiny_source(world / 'source')
    tiny_source(world / 'pruned')
    tiny_data(world)
    (world / 'reference_losses.json').write_text(json.dumps({'reference_losses': dict.fromkeys(DOMAINS, 1.0)}))
    (world / 'mixture.json').write_text(json.dumps({'proportions': dict.fromkeys(DOMAINS, 1)}))
    (world / 'pairs').mkdir()
    pair = {'prompt': 'w1 w2', 'response': 'w3'}
    (world / 'pairs' / 'train.jsonl').write_text((json.dumps(pair) + '\n') * 12)
    return {name: tiny_configuration(name, world) for name in BASES}


def tiny_configuration(name, world):
    config = OmegaConf.merge(OmegaConf.load(ROOT / 'yamls' / name), TINY_STEPS)
    variables = config.variables
    variables.work, variables.data = str(world), str(world / ('pairs' if name.startswith('finetune') else 'data'))
    for key, folder in (('source', 'source'), ('model', 'pruned')):
        if key in variables:
            variables[key] = str(world / folder)
    if name.startswith('finetune'):
        config.max_seq_len = 64  # the prompt has to fit
    config.model.attn_implementation = 'sdpa'
    config.model.init_device = 'cpu'
    domains = list(DOMAINS)
    if 'domains' in config.train_loader.dataset:
        config.train_loader.dataset.domains = domains
        config.train_loader.dataset.round_batches = 2
        if not isinstance(config.train_loader.dataset.proportions, str):
            config.train_loader.dataset.proportions = dict.fromkeys(domains, 1)
        config.eval_loader = config.eval_loader[:len(domains)]
        for loader, domain in zip(config.eval_loader, domains):
            loader.label, loader.dataset.local = domain, str(world / 'data' / 'eval' / domain)
    config = OmegaConf.to_container(config, resolve=True)
    for loader in [config['train_loader'], *config.get('eval_loader', [])]:
        loader.update(num_workers=0, prefetch_factor=None, persistent_workers=False)
    if 'targeted_pruning' in config.get('algorithms', {}):
        config['algorithms']['targeted_pruning']['target'] = dict(TINY_TARGET)
        config['callbacks']['export_pruned'].update(
            folder=str(world / 'export'), overwrite=True, allow_unconverged=True,
        )
    config['callbacks'].get('run_report', {}).pop('pruned', None)  # nothing was pruned here
    mixing = config['callbacks'].get('dynamic_batch_loading', {})
    if isinstance(mixing.get('reference_losses'), dict):
        mixing['reference_losses'] = dict.fromkeys(domains, 1.0)
    return config


def places(tree, path=()):
    """Paths of keys and list entries. ``variables`` only feed other keys, which are resolved; evaluators are alike."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if path or key != 'variables':
            yield (*path, key)
        if (path or key != 'variables') and (path != ('eval_loader',) or key == 0):
            yield from places(value, (*path, key))


def mutated(config, path, operation, value):
    """A copy with one place deleted, replaced, misspelt or given an unknown neighbour."""
    config = copy.deepcopy(config)
    parent = config
    for key in path[:-1]:
        parent = parent[key]
    last = path[-1]
    if operation == 'delete':
        del parent[last]
    elif operation == 'replace':
        parent[last] = value
    elif isinstance(parent, dict):
        parent[f'{last}_zzz'] = value if operation == 'add' else parent.pop(last)
    return config


def build(config, path, tokenizers):
    """What a run builds from a configuration before its first step, as far as ``path`` can matter."""
    with_our_checks = {'transforms': 'all'}
    _, run = make_dataclass_and_log_config(OmegaConf.create(config), TrainConfig, TRAIN_CONFIG_KEYS, **with_our_checks)
    validate_config(run)
    process_init_device(run.model, run.fsdp_config, run.tp_config)
    build_scheduler(run.scheduler.pop('name'), run.scheduler)
    build_optimizer(torch.nn.Linear(1, 1), run.optimizer.pop('name'), run.optimizer)
    for name, settings_ in (run.algorithms or {}).items():
        build_algorithm(name, settings_)
    for name, settings_ in (run.callbacks or {}).items():
        build_callback(name, settings_, config)
    for name, settings_ in (run.loggers or {}).items():
        build_logger(name, settings_)
    key = json.dumps(run.tokenizer, sort_keys=True)
    if key not in tokenizers:
        tokenizers[key] = build_tokenizer(run.tokenizer['name'], run.tokenizer.get('kwargs', {}))
    if path[0] == 'train_loader':
        build_dataloader(copy.deepcopy(run.train_loader), tokenizers[key], run.device_train_batch_size)
    if path[0] == 'eval_loader' and run.eval_loaders:
        loader = {key_: value for key_, value in run.eval_loaders[0].items() if key_ != 'label'}
        build_dataloader(copy.deepcopy(loader), tokenizers[key], run.device_eval_batch_size)


def outcome(config, path, operation, tokenizers):
    """'runs' or 'refused'; fails the test for anything else."""
    try:
        build(config, path, tokenizers)
    except (ValueError, FileNotFoundError, BaseContextualError) as error:  # what train.py turns into one message
        words = [str(part) for part in path if isinstance(part, str)]
        assert any(word.lower() in str(error).lower() for word in words), (
            f'{path} {operation}: the message names no key: {error}'
        )
        return 'refused'
    return 'runs'


@st.composite
def mutations(draw, all_places):
    name = draw(st.sampled_from(BASES))
    path = draw(st.sampled_from(all_places[name]))
    return (
        name,
        path,
        draw(st.sampled_from(('delete', 'replace', 'replace', 'replace', 'misspell', 'add'))),
        draw(st.sampled_from(HOSTILE)),
    )


def test_the_unchanged_configurations_build(bases):
    for config in bases.values():
        assert outcome(config, ('train_loader', 'eval_loader'), 'none', {}) == 'runs'


def test_mutations_build_or_are_refused_by_name(bases):
    all_places = {name: sorted(places(config), key=str) for name, config in bases.items()}
    seen, tokenizers = {'runs': 0, 'refused': 0}, {}

    @settings(max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(mutations(all_places))
    def check(case):
        name, path, operation, value = case
        seen[outcome(mutated(bases[name], path, operation, value), path, (name, operation, value), tokenizers)] += 1

    check()
    assert min(seen.values()) > 20, seen


CASES = int(os.environ.get('HOSTILE_CASES', 400))


@pytest.mark.slow
def test_a_sample_is_really_launched(bases, tmp_path):
    """Five that are refused: exit code and message of the real command, before step 0.
    Two that are not: they run to their end or likewise."""
    draw, cases, wanted = random.Random(5), [], {'refused': 5, 'runs': 2}
    while any(wanted.values()):
        name = draw.choice(BASES[:2])
        path = draw.choice(sorted(places(bases[name]), key=str))
        config = mutated(bases[name], path, draw.choice(('delete', 'replace', 'misspell')), draw.choice(HOSTILE))
        answer = outcome(copy.deepcopy(config), path, name, {})
        if wanted[answer] and (answer == 'refused' or path[0] not in ('train_loader', 'eval_loader')):
            wanted[answer] -= 1
            cases.append((answer, path, config))
    for number, (answer, path, config) in enumerate(cases):
        metrics = tmp_path / f'{number}.jsonl'
        if isinstance(config.get('loggers'), dict) and isinstance(config['loggers'].get('metrics_file'), dict):
            config['loggers']['metrics_file']['path'] = str(metrics)
        OmegaConf.save(OmegaConf.create(config), tmp_path / f'{number}.yaml')
        process = subprocess.run(
            [sys.executable, str(ROOT / 'llmshearing' / 'train.py'), str(tmp_path / f'{number}.yaml')],
            env={**os.environ, 'OMP_NUM_THREADS': '1'}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )
        if answer == 'runs' and process.returncode == 0:
            continue
        assert process.returncode == 1, (path, process.stderr[-2000:])
        assert 'ERROR: ' in process.stderr and 'Traceback' not in process.stderr, (path, process.stderr[-2000:])
        assert any(str(part) in process.stderr for part in path if isinstance(part, str))
        assert not metrics.exists()
