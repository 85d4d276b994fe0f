"""What a run notes for its page."""

from types import SimpleNamespace

from composer.core import Timestamp
from llmfoundry.callbacks.hf_checkpointer import HuggingFaceCheckpointer

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from llmshearing.callbacks.run_note import _exported, _references


def test_the_folder_of_the_checkpointer_has_its_fields_filled_in(tmp_path):
    callback = HuggingFaceCheckpointer(str(tmp_path / '{run_name}'), '1dur')
    state = SimpleNamespace(callbacks=[callback], run_name='night', timestamp=Timestamp())
    assert _exported(state, 0.0) is None
    written = tmp_path / 'night' / 'huggingface' / 'ba4'
    written.mkdir(parents=True)
    (written / 'config.json').touch()
    assert _exported(state, 0.0) == {'folder': str(written)}


def test_references_are_noted_before_the_mixture_logs_any():
    state = SimpleNamespace(callbacks=[DynamicBatchLoading({'web': 2.5}, update='constant')])
    assert _references(state) == {'web': 2.5} and _references(SimpleNamespace(callbacks=[])) is None
