"""The YAMLs of real runs are what `make yamls` writes, to the byte."""

import runpy
from pathlib import Path

YAMLS = Path(__file__).parents[2] / 'yamls'
TEXTS = runpy.run_path(str(YAMLS / 'make.py'))['texts']()


def test_every_real_run_is_made():
    assert sorted(TEXTS) == sorted(
        path.relative_to(YAMLS).as_posix() for stage in ('prune', 'continue') for path in (YAMLS / stage).glob('*.yaml')
    )


def test_the_shipped_files_are_what_it_writes():
    for path, text in TEXTS.items():
        assert (YAMLS / path).read_bytes() == text.encode(), f'yamls/{path}: run `make yamls`'
