"""A folder of three small domains, and an end to every loader of a test; tests that use them import both fixtures."""

from __future__ import annotations

import pytest

from tests.dynamic_text_world import close_loaders, write_domains

SIZES = {'a': 50, 'b': 30, 'c': 20}


@pytest.fixture(autouse=True)
def _close():
    yield
    close_loaders()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp('domains'), SIZES)
