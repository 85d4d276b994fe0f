"""Canaries of compat.torch."""

import importlib
import pickle

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.data import DataLoader

from llmshearing.compat.torch import (
    CHECKPOINT_PREFIX,
    METADATA_CLASSES,
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    own_parameters,
    place_in_file,
    shut_down_workers,
    tree_leaves,
    usable_device,
)


def test_checkpoint_prefix_is_what_activation_checkpointing_puts_before_names():
    layer = nn.ModuleDict({'mlp': checkpoint_wrapper(nn.Linear(2, 2, bias=False))})
    (name,) = layer.mlp.state_dict(prefix='mlp.')
    named = [name for name, _ in checkpoint_wrapper(layer.mlp).named_parameters()]
    assert name == 'mlp.weight' and named == ['weight']
    ((held, _),) = nn.Module.named_parameters(layer)
    assert held.replace(CHECKPOINT_PREFIX, '') == 'mlp.weight' != held


def test_fake_tensors_have_shapes_and_a_dispatch_mode_sees_operations():
    class Seen(TorchDispatchMode):
        shapes = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.shapes += [tuple(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            return out

    with FakeTensorMode():
        weight, x = torch.empty(3, 2), torch.empty(5, 2)
        with Seen() as seen:
            product = x @ weight.T
    assert isinstance(product, FakeTensor) and seen.shapes[-1] == (5, 3)


def test_place_in_file_is_where_the_storage_begins(tmp_path):
    path, expected = tmp_path / 'two.pt', {'first': torch.arange(5.0), 'second': torch.arange(7) + 10}
    torch.save(expected, path)
    with FakeTensorMode():
        fakes = torch.load(path)
    for name, tensor in expected.items():
        found = path.read_bytes()[place_in_file(fakes[name]) :][: tensor.nbytes]
        assert torch.equal(torch.frombuffer(bytearray(found), dtype=tensor.dtype), tensor)


def test_metadata_classes_are_what_a_sharded_checkpoint_is_made_of(tmp_path):
    class Watching(pickle.Unpickler):
        def find_class(self, module, name):
            seen.add((module, name))
            return super().find_class(module, name)

    seen = set()
    state = {'weight': torch.ones(2), 'note': {'text': 'a'}}
    checkpoint.save(state, checkpoint_id=tmp_path, no_dist=True)
    with (tmp_path / '.metadata').open('rb') as file:
        Watching(file).load()
    known = {(module, name) for module, names in METADATA_CLASSES.items() for name in names}
    assert {('torch.distributed.checkpoint.filesystem', '_StorageInfo'), ('torch', 'Size')} <= seen
    assert seen - known == {('torch', 'float32')}
    assert all(hasattr(importlib.import_module(module), name) for module, name in known)


def test_own_parameters_name_a_bias_that_is_not_there():
    assert own_parameters(nn.Linear(2, 3, bias=False)).keys() == {'weight', 'bias'}
    assert own_parameters(nn.Sequential(nn.Linear(2, 3))) == {}


def test_shut_down_workers_ends_them_and_the_loader_can_go_on():
    loader = DataLoader(range(8), batch_size=2, num_workers=1, persistent_workers=True)
    assert next(iter(loader)).tolist() == [0, 1]
    (worker,) = loader._iterator._workers
    shut_down_workers(loader)
    assert not worker.is_alive()
    shut_down_workers(loader)
    assert len(list(loader)) == 4
    shut_down_workers(loader)


@pytest.mark.parametrize(
    'name', ['cuda:7', 'tpu9', 'meta']
)  # one that torch knows, one that it does not, one without values
def test_usable_device_refuses_by_name(name):
    assert usable_device('cpu') == 'cpu' and usable_device(None) in ('cpu', 'cuda')
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used"):
        usable_device(name)
