"""Two nodes with disks of their own: what one finds there ends both; the first decides about what it alone writes."""

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch.distributed
from composer.utils import dist
from omegaconf import OmegaConf

from llmshearing.config.run import prepare_run
from tests.checkpoints.test_identity import OTHER, change_config, change_weights
from tests.config.demo_run import TARGET, YAML, changed
from tests.dynamic_text_world import on_ranks
from tests.tiny_run import tiny_source


@pytest.fixture
def disks(tmp_path):
    """The disks of two nodes, alike, and a configuration whose paths are on either."""
    settings = OmegaConf.load(YAML)
    settings.variables.work = 'work'
    settings.algorithms.targeted_pruning.target = TARGET
    settings.callbacks.export_pruned.overwrite = False
    config = OmegaConf.to_container(settings, resolve=True)
    config['eval_loaders'] = config.pop('eval_loader')
    tiny_source(tmp_path / '0/work/source')
    for loader in config['eval_loaders']:
        folder = tmp_path / '0' / loader['dataset']['local']
        folder.mkdir(parents=True)
        (folder / 'index.json').write_text('{"version": 2, "shards": []}')
    shutil.copytree(tmp_path / '0', tmp_path / '1')
    return tmp_path, config


def prepare(rank: int, disk: Path, config: dict, messages: tuple[str, str] | None) -> None:
    os.environ.update(LOCAL_RANK='0', LOCAL_WORLD_SIZE='1', NODE_RANK=str(rank))
    os.chdir(disk / str(rank))
    if messages is None:
        prepare_run(config)
        dist.initialize_dist('cpu', timeout=600)  # as llm-foundry does then
        dist.barrier()
    else:
        with pytest.raises(ValueError, match=messages[rank]):
            prepare_run(config)
    torch.distributed.destroy_process_group()


def test_a_folder_that_the_first_node_writes_may_be_on_another(disks):
    disk, config = disks
    out = config['callbacks']['export_pruned']['folder']
    (disk / '1' / out).mkdir(parents=True)
    on_ranks(2, prepare, disk, config, None)
    (disk / '0' / out).mkdir(parents=True)
    message = 'callbacks.export_pruned: .* exists already; choose another folder'
    on_ranks(2, prepare, disk, config, (f'^{message}', f'^On rank 0 .*: {message}'))


def continued(config: dict) -> dict:
    """The same with llm-foundry's own model, as stage 2 has it."""
    config = copy.deepcopy(config)
    config['model']['name'] = 'hf_causal_lm'
    for section, name in (('algorithms', 'targeted_pruning'), ('callbacks', 'export_pruned')):
        config = changed(config, f'{section}.{name}', KeyError)
    return config


def test_both_stages_refuse_a_node_with_another_source(disks):
    disk, config = disks
    change_weights(disk / '1/work/source')
    for stage in (config, continued(config)):
        on_ranks(2, prepare, disk, stage, (OTHER, OTHER))
    change_config(disk / '1/work/source')
    message = r'config.json of work/source \(its hash\): \w+ on rank 1 .*, \w+ on rank 0 .*; every node needs the same'
    on_ranks(2, prepare, disk, config, (message, message))
    shutil.rmtree(disk / '1/work/source')
    message = 'model.pretrained_model_name_or_path: work/source is no Hugging Face model folder|tokenizer.name'
    on_ranks(2, prepare, disk, config, (f'^On rank 1 .*: ({message})', f'^({message})'))
