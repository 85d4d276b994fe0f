"""A lock keeps other processes out, goes with the process that holds it, and is no hindrance where none is needed."""

import errno
import signal
import subprocess
import sys

import pytest
from filelock import FileLock

from llmshearing.utils.locks import hold_lock

HOLDER = """
import sys
from pathlib import Path
from llmshearing.utils.locks import hold_lock
with hold_lock(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_others_are_kept_out_until_the_holder_dies(tmp_path):
    path = tmp_path / 'lock'
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == 'True\n'
    with hold_lock(path) as mine:
        assert not mine
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with hold_lock(path, wait=True) as mine:
        assert mine
    with hold_lock(path) as mine:  # let go of at the end of a block
        assert mine


@pytest.mark.parametrize('error', [OSError(errno.ENOLCK, 'no locks'), NotImplementedError('no flock')])
def test_a_disk_without_locks_is_for_work_that_two_may_do(tmp_path, monkeypatch, error):
    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, 'acquire', acquire)
    with hold_lock(tmp_path / 'lock', optional=True) as mine:
        assert mine
    with pytest.raises(OSError), hold_lock(tmp_path / 'lock'):
        pass


def test_other_errors_are_told(tmp_path):
    path = tmp_path / 'file'
    path.write_text('')
    with pytest.raises(OSError), hold_lock(path / 'lock', optional=True):
        pass
