"""Fetches the wheels for a machine without network that has PyTorch and transformers, as many GPU machines are lent.

What ``constraints/bases.txt`` and ``constraints/imports.txt`` need is resolved for the other machine's Python with the
versions of ``constraints/current.txt``. What that machine has already stays out, whatever its version; setuptools goes
along in any case, because llm-foundry needs one that still has ``pkg_resources``.

    python constraints/wheels.py --python 3.12 --output FOLDER [--installed FILE] [--also NAME ...]

There, with FOLDER carried along and a checkout of this repository as the working folder:

    python -m pip install --no-index --no-deps --target SITE FOLDER/*.whl
    python setup.py -q egg_info        # llm-foundry finds this package's parts by its entry points
    export PYTHONPATH=$PWD:SITE
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ['INSTALLED', 'missing', 'names_in', 'resolve']

HERE = Path(__file__).parent
GLIBC_MINOR = 28  # the machine's C library is 2.28 or newer
PLATFORMS = [f'manylinux_2_{minor}_x86_64' for minor in range(GLIBC_MINOR, 4, -1)]  # pip takes each to the letter
PLATFORMS += ['manylinux2014_x86_64', 'manylinux2010_x86_64', 'manylinux1_x86_64']
LIMIT_MIB = 60
CARRIED_ANYWAY = ('setuptools',)

# What usual images with PyTorch and transformers hold, and what comes with those.
INSTALLED = """
accelerate aiohappyeyeballs aiohttp aiosignal annotated-doc anyio attrs certifi charset-normalizer click cloudpickle
contourpy cuda-bindings cuda-pathfinder cuda-toolkit cycler einops filelock fonttools frozenlist fsspec h11 hf-xet
httpcore httpx huggingface-hub idna jinja2 joblib kiwisolver lightning-utilities markdown-it-py markupsafe matplotlib
mdurl mpmath multidict networkx numpy packaging pandas pillow propcache protobuf psutil py-cpuinfo pyarrow pygments
pyparsing python-dateutil pyyaml regex requests rich safetensors scipy sentencepiece shellingham six sympy tabulate
tokenizers torch torchmetrics torchvision tqdm transformers triton typer typing-extensions urllib3 wrapt xxhash yarl
zipp
""".split()


def canonical(name: str) -> str:
    """A package's name as the index writes it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def names_in(text: str) -> set[str]:
    """Names of packages in the output of ``pip freeze`` or ``pip list``, or one name a line."""
    found = (re.match(r'\s*([A-Za-z0-9][A-Za-z0-9._-]*)', line) for line in text.splitlines())
    return {canonical(match[1]) for match in found if match} - {'package'}


def missing(resolved: Iterable[tuple[str, str]], installed: Iterable[str]) -> list[str]:
    """Requirements to carry: what is resolved and not installed, and what is carried in any case."""
    there = {canonical(name) for name in installed}
    return sorted(
        f'{name}=={version}'
        for name, version in ((canonical(name), version) for name, version in resolved)
        if name in CARRIED_ANYWAY or (name not in there and not name.startswith('nvidia-'))
    )


def resolve(python: str) -> list[tuple[str, str]]:
    """Names and versions of everything that is imported, for a Python version and Linux on x86-64."""
    requirements = ['--requirement', HERE / 'imports.txt', '--constraint', HERE / 'current.txt']
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.json'
        options = ['--dry-run', '--ignore-installed', '--target', folder, '--report', report]
        _pip('install', *_for(python), *options, *requirements)
        installs = json.loads(report.read_text(encoding='utf-8'))['install']
    return [(item['metadata']['name'], item['metadata']['version']) for item in installs]


def download(requirements: Iterable[str], python: str, output: Path) -> None:
    """Fetches wheels without what they require; the bases are on their list by name and version."""
    _pip('download', '--no-deps', *_for(python), '--dest', output, *requirements)


def _for(python: str) -> list[str]:
    tag = 'cp' + python.replace('.', '')
    abis = [part for abi in (tag, 'abi3', 'none') for part in ('--abi', abi)]
    platforms = [part for platform in PLATFORMS for part in ('--platform', platform)]
    return ['--only-binary=:all:', '--python-version', python, '--implementation', 'cp', *abis, *platforms]


def _pip(*arguments: object) -> None:
    subprocess.run([sys.executable, '-m', 'pip', '--quiet', *map(str, arguments)], check=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--python', default='3.12', help='version of Python there; default: %(default)s')
    parser.add_argument('--output', type=Path, required=True, help='folder for the wheels; new or empty')
    parser.add_argument('--installed', type=Path, help='output of `pip freeze` or `pip list` there')
    parser.add_argument(
        '--also', nargs='+', default=[], metavar='NAME', help='more packages, without what they require'
    )
    arguments = parser.parse_args(argv)
    if arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f'{arguments.output} is not empty; two versions of one wheel stop the installation.')
    there = INSTALLED if arguments.installed is None else names_in(arguments.installed.read_text(encoding='utf-8'))
    bases = [
        line for line in (HERE / 'bases.txt').read_text(encoding='utf-8').splitlines() if line[:1] not in ('', '#')
    ]
    wanted = [*bases, *missing(resolve(arguments.python), there), *arguments.also]
    download(wanted, arguments.python, arguments.output)
    wheels = sorted(arguments.output.glob('*.whl'))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    for wheel in wheels:
        sys.stdout.write(f'{wheel.stat().st_size / 1024:8.0f} KiB  {wheel.name}\n')
    sys.stdout.write(f'{len(wheels)} wheels, {size:.1f} MiB\n')
    if size > LIMIT_MIB:
        sys.stderr.write(f'more than {LIMIT_MIB} MiB: give a whole list of what is installed there with --installed.\n')
    return int(size > LIMIT_MIB)


if __name__ == '__main__':
    sys.exit(main())
