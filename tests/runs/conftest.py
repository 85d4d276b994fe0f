"""The data and the source of the runs in this folder, made once for each file."""

from __future__ import annotations

import pytest

from llmshearing.data import shared_order
from tests.runs.stages import make_world


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    yield make_world(tmp_path_factory.mktemp('world'))
    shared_order.remove_dead_runs()
