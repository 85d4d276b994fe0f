"""A folder whose weights have names that transformers does not look for says which it has."""

import json
import shutil
import subprocess

import pytest

from llmshearing.checkpoints.weight_files import check_has_config, find_tensors, find_weights

SHARDS = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']


@pytest.mark.parametrize(
    'names, told',
    [
        ([*SHARDS, 'training_args.bin'], f'It has {", ".join(SHARDS)}: copy the index that belongs to these shards'),
        (['pytorch_model-00001-of-00001.bin'], 'It has pytorch_model-00001-of-00001.bin: copy the index'),
        (['model.fp16.safetensors'], 'It has model.fp16.safetensors: convert'),
        (['consolidated.00.pth', 'rng_state.pth'], 'It has consolidated.00.pth: convert'),
        (['tiny-q4_k_m.gguf'], 'It has tiny-q4_k_m.gguf: convert'),
        (['training_args.bin', 'optimizer.pt'], r'pytorch_model.bin.index.json\.$'),
        ([], r'pytorch_model.bin.index.json\.$'),
    ],
)
def test_weights_by_other_names_are_told(names, told, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f'holds no weights: expected one of model.safetensors.* ?{told}'):
        find_weights(tmp_path)


@pytest.mark.parametrize('broken', ['config.json', 'model.safetensors', SHARDS[1]])
def test_a_copy_of_the_links_of_a_cache_is_told_and_the_advice_works(broken, tmp_path):
    """As ``cp -r`` makes of a snapshot in the hub's cache."""
    files = ['config.json', *(SHARDS if broken == SHARDS[1] else ['model.safetensors'])]
    snapshot, blobs = tmp_path / 'snapshots' / 'main', tmp_path / 'blobs'
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in files:
        (blobs / name).touch()
        (snapshot / name).symlink_to(f'../../blobs/{name}')
    index = {'metadata': {}, 'weight_map': {name: name for name in files[1:]}}
    (snapshot / 'model.safetensors.index.json').write_text(json.dumps(index))
    copy = tmp_path / 'elsewhere' / 'deep' / 'model'
    shutil.copytree(snapshot, copy, symlinks=True)
    for name in set(files) - {broken}:
        (copy / name).unlink()
        (copy / name).touch()
    with pytest.raises(ValueError, match=f'model: {broken} is a link to ../../blobs/{broken}, which is not .*: cp -rL'):
        check_has_config(str(copy), copy)
        find_tensors(copy)
    if broken == 'model.safetensors':  # without an index, as a model of one file has none
        (copy / 'model.safetensors.index.json').unlink()
        with pytest.raises(ValueError, match='is a link to'):
            find_tensors(copy)
    subprocess.run(['cp', '-rL', snapshot, tmp_path / 'whole'], check=True)
    check_has_config('whole', tmp_path / 'whole')
    assert {path.name for path in find_weights(tmp_path / 'whole')} <= set(files)
