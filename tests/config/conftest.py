"""The configuration that tests of this folder change."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.config.demo_run import TARGET, YAML
from tests.tiny_run import tiny_source


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    work = tmp_path_factory.mktemp('checks')
    tiny_source(work / 'source')
    settings = OmegaConf.load(YAML)
    settings.variables.work = str(work)
    settings.algorithms.targeted_pruning.target = TARGET
    for loader in settings.eval_loader:
        folder = Path(loader.dataset.local)
        folder.mkdir(parents=True)
        (folder / 'index.json').write_text('{"version": 2, "shards": []}')
    config = OmegaConf.to_container(settings, resolve=True)
    config['eval_loaders'] = config.pop('eval_loader')  # as llm-foundry hands lists on
    return config
