"""A folder of three small domains; the fixture is imported by the tests that use it."""

from __future__ import annotations

import pytest

from tests.dynamic_text_world import write_domains

SIZES = {'a': 50, 'b': 30, 'c': 20}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp('domains'), SIZES)
