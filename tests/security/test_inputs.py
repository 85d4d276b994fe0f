"""Models, data and YAML from elsewhere: no code unless asked for, and no file outside the folders that were named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from streaming import MDSWriter, StreamingDataset

from llmshearing import cli, train
from llmshearing.checkpoints.source import read_weights
from llmshearing.config.run import check_run, prepare_run
from llmshearing.config.secrets import check_no_secrets, find_secrets
from llmshearing.data.streams import build_domain_streams
from llmshearing.models.source_config import read_config
from llmshearing.prepare.tokenizer import plan_tokenizer
from tests.security.attack import disarmed, remote_code_model
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    tiny_source(tmp_path / 'source')
    config = OmegaConf.load(ROOT / 'yamls' / 'demo' / 'prune.yaml')
    config.variables.work = str(tmp_path)
    config.algorithms.targeted_pruning.target = {'hidden_size': 36}
    config = OmegaConf.to_container(config, resolve=True)
    config.pop('eval_loader')
    return config


def mds(folder, columns=None, **values):
    """A folder of one small shard."""
    with MDSWriter(out=str(folder), columns=columns or {'tokens': 'ndarray:int32:4'}) as writer:
        for _ in range(4):
            writer.write(values or {'tokens': np.arange(4, dtype=np.int32)})
    return folder


def led_out(folder, basename):
    """Makes the index of an MDS folder name another file."""
    index = json.loads((folder / 'index.json').read_text())
    index['shards'][0]['raw_data']['basename'] = basename
    (folder / 'index.json').write_text(json.dumps(index))
    return folder


def test_code_that_comes_with_a_source_model_is_not_run(config, tmp_path):
    with disarmed(tmp_path / 'marker') as marker:
        folder = str(remote_code_model(tmp_path / 'evil', marker))
        config['model']['pretrained_model_name_or_path'] = config['tokenizer']['name'] = folder
        with pytest.raises(ValueError, match='trust_remote_code'):
            check_run(config)
        with pytest.raises(ValueError, match='cannot be loaded'):
            plan_tokenizer(folder, None, None)


def test_remote_code_is_off_unless_asked_for(config):
    checked = prepare_run(config)
    assert checked['model']['trust_remote_code'] is checked['tokenizer']['kwargs']['trust_remote_code'] is False
    config['model']['trust_remote_code'], config['tokenizer']['kwargs'] = True, {'trust_remote_code': True}
    checked = prepare_run(config)
    assert checked['model']['trust_remote_code'] is checked['tokenizer']['kwargs']['trust_remote_code'] is True


@pytest.mark.parametrize('basename', ['../secret.mds', '/etc/passwd', '..\\secret.mds'])
def test_a_local_data_index_cannot_name_files_elsewhere(config, tmp_path, basename):
    shutil.copyfile(mds(tmp_path / 'outside') / 'shard.00000.mds', tmp_path / 'secret.mds')
    led_out(mds(tmp_path / 'data' / 'a'), basename)
    with pytest.raises(ValueError, match='outside the folder'):
        build_domain_streams(['a'], str(tmp_path / 'data'), None)
    dataset = {'local': str(tmp_path / 'data' / 'a'), 'max_seq_len': 4}
    config['eval_loaders'] = [{'name': 'text', 'label': 'a', 'dataset': dataset, 'drop_last': False, 'num_workers': 0}]
    with pytest.raises(ValueError, match='outside the folder'):
        check_run(config)


def test_a_fetched_data_index_cannot_write_elsewhere(tmp_path):
    remote, local = led_out(mds(tmp_path / 'remote' / 'a'), '../../written.mds'), tmp_path / 'near' / 'local'
    shutil.copyfile(remote / 'shard.00000.mds', tmp_path / 'written.mds')  # so that the download itself would work
    streams = build_domain_streams(['a'], str(local), str(tmp_path / 'remote'))
    with pytest.raises(ValueError, match='outside the folder'):
        StreamingDataset(streams=list(streams.values()), batch_size=1)
    assert not list((tmp_path / 'near').rglob('*.mds'))


def test_domains_cannot_be_named_out_of_their_folder(tmp_path):
    mds(tmp_path / 'other')
    for name in ('../other', '..', 'a/b'):
        with pytest.raises(ValueError, match='outside `local`'):
            build_domain_streams([name], str(tmp_path / 'data'), None)


def test_pickled_columns_of_data_are_refused(tmp_path):
    mds(tmp_path / 'a', {'tokens': 'pkl'}, tokens=[1])
    with pytest.raises(ValueError, match='unsafe type: pkl'):
        StreamingDataset(streams=list(build_domain_streams(['a'], str(tmp_path), None).values()), batch_size=1)


@pytest.mark.parametrize('file', ['../outside.safetensors', '/etc/passwd'])
def test_a_sharded_model_cannot_name_files_elsewhere(config, tmp_path, file):
    shutil.move(tmp_path / 'source' / 'model.safetensors', tmp_path / 'outside.safetensors')
    index = tmp_path / 'source' / 'model.safetensors.index.json'
    index.write_text(json.dumps({'metadata': {}, 'weight_map': {'model.norm.weight': file}}))
    with pytest.raises(ValueError, match='outside the folder'):
        read_weights(tmp_path / 'source', read_config(tmp_path / 'source'))
    with pytest.raises(ValueError, match='outside the folder'):
        check_run(config)


@pytest.mark.parametrize('command', [['prepare', 'X'], ['plan', '--config', 'X'], 'train'])
def test_yaml_cannot_build_objects(tmp_path, command, capsys):
    with disarmed(tmp_path / 'marker') as marker:
        path = tmp_path / 'evil.yaml'
        path.write_text(f'model: !!python/object/apply:os.system ["touch {marker}"]\n')
        if command == 'train':
            assert train.main([str(path)]) == 1
        else:
            assert cli.main([str(path) if word == 'X' else word for word in command]) != 0
    assert 'python/object' in capsys.readouterr().err


def test_what_is_no_run_at_all_ends_in_one_message(tmp_path, capsys):
    for text, message in (
        ('[1, 2]', 'expected keys and values'),
        ('1: 2', 'expected keys and values'),
        ('a: [', 'ERROR: '),
        ('a: ${b}', 'b'),
    ):
        (tmp_path / 'run.yaml').write_text(text)
        assert train.main([str(tmp_path / 'run.yaml')]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    'place, value',
    [
        ('loggers.wandb.init_kwargs.api_key', 'anything'),
        ('tokenizer.kwargs.token', 'anything'),
        ('model.config_overrides.note', 'hf_' + 'a1' * 17),
        ('metadata.key', 'AKIA' + 'A1' * 8),
        ('callbacks.mine.password', 'anything'),
        ('load_path', 'https://user:word@example.org/a.pt'),
    ],
)
def test_secrets_in_a_configuration_are_refused_and_not_repeated(config, place, value):
    section = config
    *parents, last = place.split('.')
    for name in parents:
        section = section.setdefault(name, {})
    section[last] = value
    with pytest.raises(ValueError, match='looks like a secret') as error:
        check_run(config)
    assert place in str(error.value) and value not in str(error.value)


def test_ordinary_settings_are_no_secrets():
    for path in (ROOT / 'yamls').rglob('*.yaml'):
        assert not list(find_secrets(OmegaConf.to_container(OmegaConf.load(path)))), path
    check_no_secrets(
        {
            'tokenizer': {'kwargs': {'eos_token': '</s>', 'use_auth_token': True}},
            'dataset': {'token_encoding_type': 'int64'},
            'max_tokens': '5',
            'load_path': 's3://bucket/a@b/c.pt',
            'commit': 'main',
        }
    )
