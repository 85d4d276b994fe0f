"""A folder whose weights have names that transformers does not look for says which it has."""

import pytest

from llmshearing.checkpoints.weight_files import find_weights

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
