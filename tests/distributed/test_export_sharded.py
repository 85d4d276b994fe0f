"""A sharded checkpoint of two ranks is exported to the folder that the run itself wrote."""

from pathlib import Path

import pytest

from llmshearing.export.job import export_checkpoint
from llmshearing.export.settings import ExportSettings
from tests.distributed.test_two_ranks import launch
from tests.tiny_run import tiny_source

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_sharded_checkpoint_of_two_ranks(tmp_path, precision):
    tiny_source(tmp_path / 'source', 'llama-tied')
    process = launch(2, [str(ROOT / 'tests/distributed/export_worker.py'), str(tmp_path), precision])
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    metadata = next((tmp_path / 'checkpoints').rglob('.metadata'))
    assert len(list(metadata.parent.glob('*.distcp'))) == 2
    report = export_checkpoint(
        metadata.parent, tmp_path / 'out', ExportSettings(allow_unconverged=True, progress=False)
    )
    assert report['logit_difference'] <= 1e-5
    names = {path.name for path in (tmp_path / 'pruned').iterdir()}
    assert names == {path.name for path in (tmp_path / 'out').iterdir()} >= {'model.safetensors', 'tokenizer.json'}
    for name in sorted(names - {'README.md'}):  # the folder's own name is in the card
        assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'pruned' / name).read_bytes(), name
