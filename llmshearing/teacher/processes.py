"""Processes that teach together, started as torchrun would, which may start them too."""

from __future__ import annotations

import os
import subprocess
import sys

__all__ = ['start_processes']


def start_processes(arguments: list[str], count: int) -> int:
    """Runs ``llmshearing teach`` in several processes on this machine; their first exit code that is not 0, else 0."""
    command = [sys.executable, '-m', 'llmshearing.cli', 'teach', *arguments, '-n', '1']
    environment = {**os.environ, 'WORLD_SIZE': str(count)}
    running = [
        subprocess.Popen(command, env={**environment, 'RANK': str(rank), 'LOCAL_RANK': str(rank)})
        for rank in range(count)
    ]
    try:
        return next((code for code in [process.wait() for process in running] if code), 0)
    finally:
        for process in running:
            process.terminate()
            process.wait()
