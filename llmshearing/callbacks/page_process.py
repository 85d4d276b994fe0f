"""The process that draws the page of ``run_report``: the command ``llmshearing report``.

Training goes on meanwhile, loads no drawing or fitting library for it, and cannot fail from whatever is wrong with a
picture. What the process complains of is a warning in the log.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

__all__ = ['PageProcess']

log = logging.getLogger(__name__)

LAST_SECONDS = 120  # how long the end of a run waits for its last page


class PageProcess:
    """Draws a run's page, one at a time.

    Args:
        metrics (Path): The run's metrics file.
        folder (Path): Where page and pictures go.
        law (Path | None): LAW.json of ``llmshearing budget fit``.
    """

    def __init__(self, metrics: Path, folder: Path, law: Path | None):
        self._command = [sys.executable, '-m', 'llmshearing.cli', 'report', str(metrics), '--out', str(folder)]
        self._command += [] if law is None else ['--law', str(law)]
        self._drawing: subprocess.Popen | None = None
        self._complaints: IO[bytes] | None = None

    @property
    def is_drawing(self) -> bool:
        """Whether the last page is still being drawn."""
        return self._drawing is not None and self._drawing.poll() is None

    def draw(self) -> None:
        """Starts drawing.

        Raises:
            OSError: If no process can be started.
        """
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        self._complaints = tempfile.TemporaryFile()
        self._drawing = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=self._complaints, env=environment
        )

    def finish(self) -> None:
        """Waits for the page that is being drawn."""
        if self._drawing is None:
            return
        try:
            self._drawing.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._drawing.kill()
            self._drawing.wait()
            log.warning('run_report gave up drawing the page after %d seconds.', LAST_SECONDS)
        self.hear()

    def hear(self) -> None:
        """Passes on why the last page could not be drawn, if it could not."""
        if self._drawing is not None and self._drawing.returncode and self._complaints is not None:
            self._complaints.seek(0)
            text = self._complaints.read().decode('utf-8', errors='replace').strip()
            log.warning(
                'run_report could not draw the page; training is not affected. %s',
                text.splitlines()[-1] if text else '',
            )
        if self._complaints is not None:
            self._complaints.close()
        self._drawing = self._complaints = None
