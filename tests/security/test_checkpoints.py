"""Checkpoints from elsewhere:
what Composer loads and what export reads can hold numbers and plain types, nothing that runs."""

import os
import pickle

import pytest
import torch
from composer.models.huggingface import get_hf_config_from_composer_state_dict
from composer.utils.checkpoint import FileSystemReaderWithValidation, safe_torch_load
from torch.distributed.checkpoint import FileSystemWriter, save
from transformers import LlamaConfig

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.checkpoints.checkpoint import _stored_config, open_checkpoint
from llmshearing.checkpoints.guard import FORCE, VALIDATE, guard_checkpoint_loading, refuse_code
from llmshearing.checkpoints.shards import load_stored_shards
from llmshearing.checkpoints.tokenizer_files import write_tokenizer_files
from llmshearing.export.legacy_import import read_legacy
from tests.security.attack import armed, armed_archive, armed_pickle, disarmed, remote_code_model
from tests.tiny_run import tiny_source, tiny_trainer

TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'num_key_value_heads': 1, 'intermediate_size': 40}


@pytest.fixture
def guarded(monkeypatch):
    """The switches that a run sets, for this test only."""
    monkeypatch.setenv(FORCE, '1')
    monkeypatch.delenv(VALIDATE, raising=False)
    guard_checkpoint_loading()


@pytest.fixture
def sharded(tmp_path):
    """A sharded checkpoint of one tensor."""
    save(
        {'state': {'model': {'weight': torch.ones(4)}}},
        storage_writer=FileSystemWriter(tmp_path / 'sharded'),
        no_dist=True,
    )
    return tmp_path / 'sharded'


def test_the_attack_works_where_nothing_is_guarded(tmp_path, monkeypatch):
    monkeypatch.delenv(FORCE, raising=False)
    monkeypatch.delenv(VALIDATE, raising=False)
    marker = tmp_path / 'marker'
    safe_torch_load(armed(tmp_path / 'evil.pt', marker))  # Composer's own, whose name promises more
    assert marker.exists()


def test_composer_refuses_an_armed_checkpoint_and_names_what_is_in_it(guarded, tmp_path):
    with disarmed(tmp_path / 'marker') as marker:
        path = armed(tmp_path / 'evil.pt', marker)
        with pytest.raises(
            ValueError, match=r'evil.pt is not loaded, because it could run code: it holds posix.system'
        ):
            safe_torch_load(path)


def test_without_composers_hook_pytorch_still_refuses(guarded, tmp_path, monkeypatch):
    monkeypatch.delenv(VALIDATE)
    with disarmed(tmp_path / 'marker') as marker:
        with pytest.raises(pickle.UnpicklingError, match='posix.system'):
            safe_torch_load(armed(tmp_path / 'evil.pt', marker))


def test_a_run_with_an_armed_load_path_ends_before_its_first_step(guarded, tmp_path):
    source = tiny_source(tmp_path / 'source')
    with disarmed(tmp_path / 'marker') as marker:
        with pytest.raises(ValueError, match='could run code'):
            tiny_trainer(
                source, [TargetedPruning(TARGET)], batches=2, load_path=str(armed(tmp_path / 'evil.pt', marker))
            )


def test_genuine_checkpoints_pass_and_resume(guarded, tmp_path):
    source = tiny_source(tmp_path / 'source')
    saving = dict(save_folder=str(tmp_path / 'save'), save_filename='ba{batch}.pt', save_interval='1ba')
    tiny_trainer(source, [TargetedPruning(TARGET)], batches=2, **saving).fit(duration='1ba')
    assert refuse_code(tmp_path / 'save' / 'ba1.pt')
    resumed = tiny_trainer(source, [TargetedPruning(TARGET)], batches=2, load_path=str(tmp_path / 'save' / 'ba1.pt'))
    assert resumed.state.timestamp.batch.value == 1


def test_a_validation_of_the_users_own_stays(monkeypatch):
    monkeypatch.setenv(FORCE, '1')
    monkeypatch.setenv(VALIDATE, 'my.own')
    guard_checkpoint_loading()
    assert os.environ[VALIDATE] == 'my.own'
    monkeypatch.delenv(VALIDATE)
    guard_checkpoint_loading()
    assert os.environ.pop(VALIDATE) == 'llmshearing.checkpoints.validation.validate_checkpoint'


def test_who_asks_for_it_may_load_anything(guarded, tmp_path, monkeypatch):
    monkeypatch.setenv(FORCE, '0')
    assert refuse_code(armed(tmp_path / 'evil.pt', tmp_path / 'marker'))


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    (tmp_path / 'text.pt').write_text('no archive')
    with pytest.raises(ValueError, match='text.pt is no PyTorch archive'):
        refuse_code(tmp_path / 'text.pt')
    torch.save({'state': torch.ones(1000)}, tmp_path / 'whole.pt')
    (tmp_path / 'half.pt').write_bytes((tmp_path / 'whole.pt').read_bytes()[:2000])
    with pytest.raises(ValueError, match='half.pt cannot be read'):
        refuse_code(tmp_path / 'half.pt')


def test_armed_metadata_of_a_sharded_checkpoint(guarded, sharded, tmp_path):
    assert FileSystemReaderWithValidation(str(sharded)).read_metadata().storage_data  # the genuine one
    with disarmed(tmp_path / 'marker') as marker:
        armed_pickle(sharded / '.metadata', marker)
        for read in (
            FileSystemReaderWithValidation(str(sharded)).read_metadata,
            lambda: load_stored_shards(sharded, ('model',)),
        ):
            with pytest.raises(ValueError, match='could run code'):
                read()


def test_metadata_that_leads_out_of_its_folder(guarded, sharded):
    metadata = pickle.loads((sharded / '.metadata').read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = '../../elsewhere.distcp'
    (sharded / '.metadata').write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match='elsewhere.distcp.*outside the folder'):
        FileSystemReaderWithValidation(str(sharded)).read_metadata()


def test_an_armed_piece_of_a_sharded_checkpoint(guarded, sharded, tmp_path):
    with disarmed(tmp_path / 'marker') as marker:
        data = armed_archive(marker)
        metadata = pickle.loads((sharded / '.metadata').read_bytes())
        for info in metadata.storage_data.values():
            info.offset, info.length = 0, len(data)
        (sharded / '.metadata').write_bytes(pickle.dumps(metadata))
        for path in sharded.glob('*.distcp'):
            path.write_bytes(data)
        content = load_stored_shards(sharded, ('model',))
        with pytest.raises(ValueError, match='could run code'):
            content['model']['weight'].read()


@pytest.mark.parametrize('read', [open_checkpoint, read_legacy])
def test_export_and_import_read_nothing_armed(tmp_path, read):
    with disarmed(tmp_path / 'marker') as marker:
        with pytest.raises(ValueError, match='posix.system'):
            read(armed(tmp_path / 'evil.pt', marker, {'weight': torch.ones(2)}))


def test_a_stored_config_cannot_bring_code(tmp_path):
    marker = tmp_path / 'marker'
    folder = remote_code_model(tmp_path / 'model', marker)
    stored = {
        'model_type': 'not_a_type',
        '_name_or_path': str(folder),
        'trust_remote_code': True,
        'auto_map': {'AutoConfig': 'evil.Evil'},
    }
    with disarmed(marker):
        with pytest.raises(ValueError, match="type 'not_a_type', which transformers does not know"):
            _stored_config(tmp_path / 'a.pt', stored)
    config = _stored_config(tmp_path / 'a.pt', {**LlamaConfig().to_dict(), 'auto_map': {'AutoConfig': 'evil.Evil'}})
    assert config.model_type == 'llama' and not hasattr(config, 'auto_map')
    parts = {'state': {'integrations': {'huggingface': {'model': {'config': {'content': stored}}}}}}
    # Composer's reader trusts what stands in the checkpoint: the attack is real
    get_hf_config_from_composer_state_dict(parts)
    assert marker.exists()


@pytest.mark.parametrize('name', ['../config.json', '/etc/passwd', '..', 'a\\b.json'])
def test_tokenizer_files_stay_in_their_folder(tmp_path, name):
    (tmp_path / 'inner').mkdir()
    with pytest.raises(ValueError, match='outside the folder'):
        write_tokenizer_files({name: {'file_extension': '.json', 'content': {}}}, tmp_path / 'inner')
    assert [path.name for path in tmp_path.iterdir()] == ['inner'] and not list((tmp_path / 'inner').iterdir())


def test_tokenizer_code_is_not_written(tmp_path):
    with pytest.raises(ValueError, match='code, or unknown'):
        write_tokenizer_files({'evil.py': {'file_extension': '.py', 'content': 'x'}}, tmp_path)
    write_tokenizer_files(
        {'tokenizer_config.json': {'file_extension': '.json', 'content': {'auto_map': {}, 'a': 1}}}, tmp_path
    )
    assert 'auto_map' not in (tmp_path / 'tokenizer_config.json').read_text()
