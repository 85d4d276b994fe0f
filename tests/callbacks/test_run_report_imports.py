"""What a training rank loads for its report: nothing that draws, fits or belongs to a command."""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
import composer, llmfoundry.models.hf  # what every training rank has loaded already
before = set(sys.modules)
import llmshearing.callbacks.run_report
new = {'.'.join(name.split('.')[:3]) for name in set(sys.modules) - before}
bad = {name for name in new if name.split('.')[0] in ('matplotlib', 'scipy', 'jinja2')}
ours = ('llmshearing.commands', 'llmshearing.scaling', 'llmshearing.reports.')
bad |= {name for name in new if name.startswith(ours)}
sys.exit(f'loaded: {sorted(bad)}' if bad - {'llmshearing.reports.kept'} else 0)
"""


def test_the_callback_loads_neither_pictures_nor_commands():
    process = subprocess.run([sys.executable, '-c', LOADED], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-500:]
