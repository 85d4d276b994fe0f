"""What needs no training works with torch, transformers and catalogue, and what these require; nothing else."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import llmshearing
from tests.tiny_run import tiny_source

PACKAGE = Path(llmshearing.__file__).parent
# Of the packages that stand alone, the modules that are about one of the three bases.
OF_THE_BASES = {'models.sheared_causal_lm', 'compat.composer', 'compat.llmfoundry', 'compat.streaming'}


def required(names: list[str]) -> set[str]:
    """Distributions that some need, without their extras, and these themselves."""
    found: set[str] = set()
    waiting = [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # for another platform or Python
            continue
        waiting += [canonical(re.split(r'[^\w.-]', line)[0]) for line in lines if 'extra ==' not in line]
    return found


def canonical(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def others() -> list[str]:
    """Top-level modules of everything that is installed beside what the packages stand on."""
    allowed = required(['torch', 'transformers', 'catalogue', 'setuptools'])
    modules = packages_distributions()
    return sorted(
        module
        for module, owners in modules.items()
        if not {canonical(owner) for owner in owners} & allowed and module != 'llmshearing'
    )


BLOCK = """
import importlib, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in BLOCKED else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path if hasattr(finder, 'find_spec')]
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', f'BLOCKED = {others()!r}\n' + BLOCK + script], cwd=folder, capture_output=True, text=True
    )


def test_modules_import_with_torch_transformers_and_catalogue_alone(tmp_path):
    names = [
        '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
        for package in ('models', 'masks', 'export', 'checkpoints', 'utils', 'compat')
        for path in sorted((PACKAGE / package).glob('*.py'))
        if path.stem != '__init__'
    ]
    assert {'composer', 'streaming', 'llmfoundry', 'accelerate', 'scipy', 'omegaconf'} <= set(others())
    assert len(names) > 50 and set(names) >= OF_THE_BASES
    modules = [f'llmshearing.{name}' for name in names if name not in OF_THE_BASES]
    process = run(f'for name in {modules!r}:\n    importlib.import_module(name)\n', tmp_path)
    assert process.returncode == 0, process.stderr


def test_a_model_is_pruned_and_exported_with_them_alone(tmp_path):
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
