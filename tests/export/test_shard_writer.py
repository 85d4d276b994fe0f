"""A disk that fills while a model is written ends in one error of the system's kind, and leaves nothing."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from llmshearing.export.shard_writer import ModelFolderWriter

SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from llmshearing.export.shard_writer import ModelFolderWriter

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # writes beyond it fail, as on a full disk
try:
    with ModelFolderWriter(Path('out')) as writer:
        writer.add('weight', torch.zeros(1 << 20))
        writer.finish_tensors()
        writer.commit()
except OSError as error:
    sys.exit(0 if 'model' not in str(list(Path('.').iterdir())) and 'cannot be written' in str(error) else 3)
"""


@pytest.mark.skipif(not hasattr(resource, 'RLIMIT_FSIZE'), reason='no limits on file sizes')
def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path):
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
    command = [sys.executable, '-c', SCRIPT]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_with_other_files_names_the_folder(tmp_path):
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'out'}'"),
        ModelFolderWriter(tmp_path / 'out'),
    ):
        raise OSError(errno.ENOSPC, 'No space left on device')  # as writing to an open file says it


@pytest.mark.parametrize('overwrite', [False, True])
def test_what_came_to_the_destination_meanwhile_is_not_removed(tmp_path, overwrite):
    with pytest.raises(ValueError), ModelFolderWriter(tmp_path / 'out', overwrite=overwrite) as writer:
        (tmp_path / 'out').mkdir()
        (tmp_path / 'out' / 'precious.txt').write_text('mine')
        writer.commit()
    assert [path.name for path in tmp_path.iterdir()] == ['out'] and (tmp_path / 'out' / 'precious.txt').exists()


def test_two_exports_to_one_destination_do_not_mix(tmp_path):
    with ModelFolderWriter(tmp_path / 'out') as first:
        (first.path / 'mine').touch()
        with pytest.raises(ValueError, match='another process is writing .*out'), ModelFolderWriter(tmp_path / 'out'):
            pass
        first.commit()
    assert [path.name for path in tmp_path.iterdir()] == ['out'] and (tmp_path / 'out' / 'mine').exists()


def test_a_model_folder_is_replaced_where_that_is_allowed(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'config.json').write_text('{}')
    with ModelFolderWriter(tmp_path / 'out', overwrite=True) as writer:
        (writer.path / 'new').touch()
        writer.commit()
    assert [path.name for path in tmp_path.iterdir()] == ['out'] and [*(tmp_path / 'out').iterdir()][0].name == 'new'
