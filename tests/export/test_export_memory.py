"""The benchmark of export's memory in its small size: memory grows by far less than the checkpoint is large."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason="peak memory is read from Linux's /proc")
def test_memory_holds_one_shard_not_the_checkpoint(tmp_path):
    import export_memory

    result = export_memory.main(['--folder', str(tmp_path), '--out', str(tmp_path / 'result.json')])
    assert json.loads((tmp_path / 'result.json').read_text()) == result
    assert result['checkpoint_mb'] > 300 and result['tensors_compared'] == 6 * 9 + 3
    growth = result['peak_mb'] - result['after_imports_mb']
    # Largest tensor as stored, cut and in float32 while it is scaled, one shard, and the metadata.
    assert growth < 0.4 * result['checkpoint_mb'], result
    assert not [path for path in tmp_path.iterdir() if path.name != 'result.json']
