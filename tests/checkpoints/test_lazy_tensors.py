"""Files are read without running what is in them, tensor by tensor, and damage is noticed."""

import datetime
import os
import pickle
import re
from pathlib import PosixPath

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from llmshearing.checkpoints.checkpoint import open_checkpoint
from llmshearing.checkpoints.lazy_tensors import SAFE_GLOBALS, StoredTensor, load_stored, read_all
from llmshearing.checkpoints.shards import METADATA_NAME, load_stored_shards, read_metadata
from llmshearing.checkpoints.tokenizer_files import write_tokenizer_files
from tests.export.checkpoints import pruning_checkpoint


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def tensors():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        'plain': base.clone(),
        'view': base[1:3, 2:].t(),
        'half': torch.randn(5, 3).bfloat16(),
        'whole numbers': torch.tensor([[1, 2], [3, 4]]),
        'scalar': torch.tensor(2.5),
        'empty': torch.zeros(0, 4),
        'nested': [{'deep': torch.ones(2)}, (torch.zeros(3), 'text', None)],
    }


def test_nothing_is_read_until_asked_and_then_exactly(tmp_path):
    expected = tensors()
    torch.save(expected, tmp_path / 'file.pt')
    stored = load_stored(tmp_path / 'file.pt')
    assert (
        isinstance(stored['view'], StoredTensor)
        and stored['view'].shape == (4, 2)
        and stored['half'].dtype == torch.bfloat16
    )
    got = read_all(stored)
    for name in ('plain', 'view', 'half', 'whole numbers', 'scalar', 'empty'):
        assert got[name].dtype == expected[name].dtype and torch.equal(got[name], expected[name]), name
    assert torch.equal(got['nested'][0]['deep'], torch.ones(2)) and got['nested'][1][1:] == ('text', None)
    got['plain'].zero_()  # memory of its own
    assert torch.equal(stored['plain'].read(), expected['plain'])


def test_code_in_a_file_is_named_and_not_run(tmp_path):
    torch.save({'state': {'model': {}}, 'surprise': Malicious(tmp_path / 'made')}, tmp_path / 'file.pt')
    with pytest.raises(ValueError, match=r'could run code: it holds posix.mkdir'):
        load_stored(tmp_path / 'file.pt')
    assert not (tmp_path / 'made').exists()


def test_damage_is_an_error(tmp_path):
    torch.save({'weight': torch.randn(1000)}, tmp_path / 'file.pt')
    whole = (tmp_path / 'file.pt').read_bytes()
    (tmp_path / 'cut.pt').write_bytes(whole[:2000])
    with pytest.raises(ValueError, match='cut.pt cannot be read'):
        load_stored(tmp_path / 'cut.pt')
    stored = load_stored(tmp_path / 'file.pt')
    (tmp_path / 'file.pt').write_bytes(whole[:2000])  # cut while it is open
    with pytest.raises(ValueError, match='ends in the middle of a tensor'):
        stored['weight'].read()
    (tmp_path / 'text.pt').write_text('not a checkpoint')
    with pytest.raises(ValueError, match='no PyTorch archive'):
        load_stored(tmp_path / 'text.pt')
    with pytest.raises(FileNotFoundError, match='absent.pt'):
        load_stored(tmp_path / 'absent.pt')


def save_shards(state, folder):
    dcp.save({'state': state}, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    return folder


def test_shards_give_back_the_nested_state(tmp_path):
    state = {'model': tensors(), 'timestamp': {'Timestamp': {'batch': 7}}, 'unwanted': torch.ones(1)}
    folder = save_shards(state, tmp_path / 'sharded')
    got = read_all(load_stored_shards(folder, ('model', 'timestamp')))
    assert set(got) == {'model', 'timestamp'} and got['timestamp']['Timestamp']['batch'] == 7
    for name in ('plain', 'view', 'half', 'whole numbers', 'scalar', 'empty'):
        assert torch.equal(got['model'][name], state['model'][name]), name
    assert torch.equal(got['model']['nested'][0]['deep'], torch.ones(2))


def test_code_in_shards_is_not_run(tmp_path):
    folder = save_shards(
        {'model': {'weight': torch.ones(3)}, 'algorithms': Malicious(tmp_path / 'made')}, tmp_path / 'object'
    )
    assert not (tmp_path / 'made').exists()
    with pytest.raises(ValueError, match='state.algorithms is not read, because loading it could run code'):
        load_stored_shards(folder, ('model', 'algorithms'))
    assert list(load_stored_shards(folder, ('model',))) == ['model']  # what is not wanted is not looked at
    folder = save_shards({'model': {'weight': torch.ones(3)}}, tmp_path / 'metadata')
    (folder / '.metadata').write_bytes(pickle.dumps(Malicious(tmp_path / 'made')))
    with pytest.raises(ValueError, match='could run code: it holds posix.mkdir'):
        load_stored_shards(folder, ('model',))
    assert not (tmp_path / 'made').exists()


def edit_metadata(folder, edit):
    path = folder / '.metadata'
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


def test_shards_that_point_elsewhere_or_lack_pieces_are_refused(tmp_path):
    folder = save_shards({'model': {'weight': torch.ones(3)}}, tmp_path / 'sharded')
    stored = load_stored_shards(folder, ('model',))
    os.rename(folder / '__0_0.distcp', tmp_path / 'elsewhere.distcp')

    def redirect(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = '../elsewhere.distcp'

    edit_metadata(folder, redirect)
    with pytest.raises(ValueError, match='outside the folder'):
        load_stored_shards(folder, ('model',))['model']['weight'].read()
    with pytest.raises(FileNotFoundError):
        stored['model']['weight'].read()
    edit_metadata(folder, lambda metadata: metadata.storage_data.clear())
    with pytest.raises(ValueError, match='a piece of state.model.weight is missing'):
        load_stored_shards(folder, ('model',))['model']['weight'].read()
    with pytest.raises(FileNotFoundError, match='.metadata'):
        load_stored_shards(tmp_path, ('model',))


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: b'',
        lambda content: content[: len(content) // 2],
        lambda content: b'\x80\x04garbage\x00\xff',
        lambda content: b'hello\n',
        lambda content: content[:-40] + bytes(40),
    ],
)
def test_damaged_metadata_is_not_taken_for_code(tmp_path, damage):
    folder = save_shards({'model': {'weight': torch.ones(3)}}, tmp_path / 'sharded')
    (folder / '.metadata').write_bytes(damage((folder / '.metadata').read_bytes()))
    with pytest.raises(ValueError, match=r'\.metadata cannot be read \(.*: it was cut off or changed'):
        load_stored_shards(folder, ('model',))


def without_empty(tree):
    return {key: without_empty(value) for key, value in tree.items() if value != {}} if isinstance(tree, dict) else tree


def test_a_whole_pruning_checkpoint_is_the_same_in_both_formats(tmp_path):
    path, _, _, pruning = pruning_checkpoint(tmp_path, 'lagrangian')
    content = torch.load(path, weights_only=False)
    folder = save_shards(content['state'], tmp_path / 'sharded')
    one, other = open_checkpoint(path), open_checkpoint(folder)
    assert one.config.to_dict() == other.config.to_dict() and one.batches == other.batches == 6
    # sharded checkpoints cannot hold an empty mapping
    assert without_empty(one.tokenizer) == without_empty(other.tokenizer)
    assert list(one.weights) == list(other.weights)
    for name in one.weights:
        assert torch.equal(one.get(name), other.get(name)), name
    for axis, mask in pruning.final_masks().items():
        assert torch.equal(one.pruning.final_masks()[axis], mask)
        assert torch.equal(other.pruning.final_masks()[axis], mask)
    assert one.pruning.reports() == other.pruning.reports() == pruning.reports()
    assert one.get('no.such.weight') is None


def test_tokenizer_files_that_are_code_are_not_written(tmp_path):
    write_tokenizer_files({'merges.txt': {'file_extension': '.txt', 'content': ['#version', 'a b']}}, tmp_path)
    assert (tmp_path / 'merges.txt').read_text() == '#version\na b'
    with pytest.raises(ValueError, match="'tokenization_own.py', which is not written"):
        write_tokenizer_files({'tokenization_own.py': {'file_extension': '.py', 'content': 'print()'}}, tmp_path)


def test_no_composer_checkpoint_says_so(tmp_path):
    torch.save({'weight': torch.ones(1)}, tmp_path / 'bare.pt')
    with pytest.raises(ValueError, match='is no Composer checkpoint.*llmshearing import'):
        open_checkpoint(tmp_path / 'bare.pt')
    torch.save({'state': {'model': {}}}, tmp_path / 'unnamed.pt')
    with pytest.raises(ValueError, match='carries no Hugging Face config.*--source'):
        open_checkpoint(tmp_path / 'unnamed.pt')


@pytest.mark.parametrize('before', [[], SAFE_GLOBALS], ids=['nothing allowed', 'allowed by a run'])
def test_what_may_be_loaded_is_as_before(tmp_path, before):
    path = tmp_path / 'file.pt'
    torch.save({'elapsed': datetime.timedelta(1)}, path)
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)
    try:
        assert load_stored(path) == {'elapsed': datetime.timedelta(1)}
        assert set(map(str, torch.serialization.get_safe_globals())) == set(map(str, before))
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)


def test_metadata_of_any_python_is_read(tmp_path):
    """Python 3.13 pickles paths as of `pathlib._local`, which the others do not have."""
    metadata = Metadata({}, {}, {}, storage_meta=StorageMeta(checkpoint_id=PosixPath('runs/ep0-ba1')))
    for place in (b'pathlib', b'pathlib._local'):
        # protocol 2 writes names in plain lines
        pickled = re.sub(rb'cpathlib(\._local)?\n', b'c' + place + b'\n', pickle.dumps(metadata, protocol=2))
        assert place + b'\nPosixPath' in pickled
        (tmp_path / METADATA_NAME).write_bytes(pickled)
        assert read_metadata(tmp_path).storage_meta.checkpoint_id == PosixPath('runs/ep0-ba1')
