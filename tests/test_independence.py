"""What needs no training works with torch and transformers alone: no Composer, Streaming or llm-foundry."""

import re
import subprocess
import sys
from pathlib import Path

import llmshearing
from tests.tiny_run import tiny_source

PACKAGE = Path(llmshearing.__file__).parent
# Of the packages that stand alone, the modules that are about one of the three bases.
OF_THE_BASES = {'models.sheared_causal_lm', 'compat.composer', 'compat.llmfoundry', 'compat.streaming'}
BLOCK = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('composer', 'streaming', 'llmfoundry'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Missing())
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', BLOCK + script], cwd=folder, capture_output=True, text=True)


def test_modules_import_without_the_three_bases(tmp_path):
    names = [
        '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
        for package in ('models', 'masks', 'export', 'checkpoints', 'utils', 'compat')
        for path in sorted((PACKAGE / package).glob('*.py'))
        if path.stem != '__init__'
    ]
    assert len(names) > 50 and set(names) >= OF_THE_BASES
    modules = [f'llmshearing.{name}' for name in names if name not in OF_THE_BASES]
    process = run(f'for name in {modules!r}:\n    importlib.import_module(name)\n', tmp_path)
    assert process.returncode == 0, process.stderr


def test_a_model_is_pruned_and_exported_without_the_three_bases(tmp_path):
    tiny_source(tmp_path / 'source')
    readme = (PACKAGE / 'algorithms' / 'targeted_pruning' / 'README.md').read_text()
    lines, imports = re.findall(r'```python\n(.*?)```', readme, re.DOTALL)[:2]
    inputs = (
        'import torch\nfrom transformers import AutoTokenizer\n'
        'tokenizer = AutoTokenizer.from_pretrained("source")\n'
        'batches = [dict(input_ids=ids, labels=ids) for ids in torch.arange(3, 67).view(2, 2, 16)]\n'
    )
    process = run(imports + inputs + lines, tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / 'pruned' / 'model.safetensors').is_file()
