"""What one stack writes, the other reads: exports with equal logits, checkpoints that go on with equal losses.

``make test-across`` runs this with both environments. Elsewhere ``OTHER_PYTHON`` names the interpreter of the other
one; without it there is nothing to compare with.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmshearing.compat.transformers import EXPERTS_ARE_MODULES
from llmshearing.models.family_tables import TABLES
from tests.across.side import RUNS, STOP, TEXT
from tests.models.tiny import NEWER, ROTARY, VARIANTS
from tests.runs.stages import outcome
from tests.runs.test_elastic import check_same
from tests.tiny_run import tiny_tokenizer

ROOT = Path(__file__).parents[2]
OTHER = os.environ.get('OTHER_PYTHON')
PYTHONS = {'here': sys.executable, 'there': OTHER}
DIRECTIONS = [('here', 'there'), ('there', 'here')]
# transformers 4 gives every layer of such a model the window that 5 gives some: equal up to its length.
WINDOW_OF_ALL_LAYERS = {'qwen2': 8}
# transformers 5 makes a tokenizer of its own kind of such a model's, which the tests' list of words is not.
TOKENIZER_OF_ITS_OWN = ('qwen2',)

pytestmark = pytest.mark.skipif(OTHER is None, reason='OTHER_PYTHON names no environment of the other stack')


def side(place: str, *arguments: object) -> None:
    """Runs tests/across/side.py in one of the environments."""
    command = [PYTHONS[place], str(ROOT / 'tests' / 'across' / 'side.py'), *map(str, arguments)]
    process = subprocess.run(
        command, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Folder by place."""
    folder = tmp_path_factory.mktemp('across')
    for place in PYTHONS:
        (folder / place).mkdir()
        side(place, 'write', folder / place)
    return {place: folder / place for place in PYTHONS}


@pytest.fixture(scope='module')
def opened(written):
    """What the second of a direction found in the exports of the first."""
    for writer, reader in DIRECTIONS:
        side(reader, 'open', written[writer] / 'exports', written[writer] / 'opened')
    return {writer: torch.load(written[writer] / 'opened', weights_only=True) for writer, _ in DIRECTIONS}


@pytest.fixture(scope='module')
def resumed(written):
    for writer, reader in DIRECTIONS:
        side(reader, 'resume', written[writer], written[writer] / 'resumed')
    return {writer: written[writer] / 'resumed' for writer, _ in DIRECTIONS}


def test_the_other_environment_is_of_another_stack():
    script = 'import transformers; print(transformers.__version__)'
    versions = {subprocess.check_output([python, '-c', script], cwd=ROOT, text=True) for python in PYTHONS.values()}
    assert len(versions) == 2


def test_no_family_that_both_stacks_have_is_left_out():
    assert {variant.split('-')[0] for variant in VARIANTS if variant not in NEWER} == set(TABLES) - NEWER


@pytest.mark.parametrize('writer', PYTHONS)
@pytest.mark.parametrize('variant', [name for name in (*VARIANTS, *ROTARY) if name not in NEWER])
def test_an_export_is_the_same_model_for_the_other_stacks_own_transformers(written, opened, writer, variant):
    masked = torch.load(written[writer] / 'masked', weights_only=True)[variant]
    found = opened[writer][variant]
    same = slice(WINDOW_OF_ALL_LAYERS.get(variant))
    torch.testing.assert_close(found['logits'][:, same], masked[:, same], rtol=1e-5, atol=1e-5)
    assert found['problems'] == [] and found['dtype'] == 'torch.float32'
    assert found['tokens'] == tiny_tokenizer()(TEXT).input_ids or variant in TOKENIZER_OF_ITS_OWN


@pytest.mark.parametrize('writer', PYTHONS)
@pytest.mark.parametrize('variant', WINDOW_OF_ALL_LAYERS)
def test_where_windows_differ_by_layer_the_stacks_differ_after_them(written, opened, writer, variant):
    masked = torch.load(written[writer] / 'masked', weights_only=True)[variant]
    assert (opened[writer][variant]['logits'] - masked)[:, WINDOW_OF_ALL_LAYERS[variant] :].abs().max() > 1e-3


@pytest.mark.parametrize('writer', PYTHONS)
def test_a_mixtures_checkpoint_is_exported_on_the_newer_stack(written, resumed, writer):
    found = torch.load(resumed[writer] / 'weights of the mixture', weights_only=True)
    if 'refused' in found:  # of transformers 5, on 4
        assert 'is of transformers 5, which has the experts of a mixture in other tensors' in found['refused']
        assert EXPERTS_ARE_MODULES == (writer == 'there')
        return
    assert EXPERTS_ARE_MODULES == (writer == 'here')
    assert found['mixture'].keys() == found['pruned'].keys()
    assert all(torch.equal(weight, found['pruned'][name]) for name, weight in found['mixture'].items())


@pytest.mark.parametrize('writer', PYTHONS)
@pytest.mark.parametrize('run', RUNS)
def test_a_checkpoint_goes_on_on_the_other_stack(written, resumed, writer, run):
    check_same(outcome(resumed[writer] / run), outcome(written[writer] / 'runs' / run), STOP)
