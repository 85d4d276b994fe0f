"""What a run notes for its page."""

from types import SimpleNamespace

import numpy as np
from composer.core import Timestamp
from llmfoundry.callbacks.hf_checkpointer import HuggingFaceCheckpointer
from llmfoundry.data.text_data import StreamingTextDataset
from streaming import MDSWriter

from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from llmshearing.callbacks.run_note import MEASURED, _exported, _references, tokenizer_note
from tests.tiny_run import tiny_tokenizer


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


def test_the_bytes_of_a_token_of_each_evaluation_set_are_noted(tmp_path):
    tokenizer = tiny_tokenizer()
    ids = tokenizer('w5 w60 w7 w5')['input_ids']
    with MDSWriter(out=str(tmp_path / 'web'), columns={'tokens': 'ndarray:uint16'}) as out:
        for _ in range(MEASURED + 1):
            out.write({'tokens': np.array(ids, np.uint16)})
    with MDSWriter(out=str(tmp_path / 'raw'), columns={'text': 'str'}) as out:
        out.write({'text': 'w5 w60'})
    datasets = {
        name: StreamingTextDataset(tokenizer, len(ids), local=str(tmp_path / name), batch_size=1)
        for name in ('web', 'raw')
    }
    evaluators = [
        SimpleNamespace(label=f'eval/{name}', dataloader=SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset)))
        for name, dataset in datasets.items()
    ]
    note = tokenizer_note(SimpleNamespace(evaluators=evaluators))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(text) == 12 and note['bytes_per_token'] == {'web': 12 / len(ids)}
    assert note['vocabulary'] == tokenizer_note(SimpleNamespace(evaluators=evaluators[1:]))['vocabulary']
    evaluators[1].dataloader.dataloader.dataset.tokenizer = tiny_tokenizer(64)
    assert note['vocabulary'] != tokenizer_note(SimpleNamespace(evaluators=evaluators[1:]))['vocabulary']
    assert tokenizer_note(SimpleNamespace(evaluators=[])) is None
