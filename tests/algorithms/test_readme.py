"""The lines that the README of targeted_pruning begins with prune a model as they stand."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from llmshearing.algorithms import targeted_pruning
from llmshearing.models.cuttable import Cutter
from tests.tiny_run import sequences_spec, tiny_source, tiny_tokenizer

README = Path(targeted_pruning.__file__).with_name('README.md')


def test_ten_lines_of_plain_python_prune_a_model(tmp_path, monkeypatch):
    tiny_source(tmp_path / 'source')
    monkeypatch.chdir(tmp_path)
    lines, imports = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
    assert len(lines.strip().splitlines()) == 10
    names = {'batches': list(sequences_spec(12, 4, seed=5).dataloader), 'tokenizer': tiny_tokenizer()}
    exec(imports + lines, names)
    pruned = AutoModelForCausalLM.from_pretrained('pruned')
    assert (pruned.config.hidden_size, pruned.config.intermediate_size) == (24, 32)
    assert {'tokenizer.json', 'model.safetensors', 'config.json'} <= {path.name for path in Path('pruned').iterdir()}
    ids = names['batches'][0]['input_ids']
    masked = Cutter(AutoModelForCausalLM.from_pretrained('source'))
    masked.norm_energies = names['cutter'].norm_energies
    masked.set_masks(names['masks'])
    with torch.no_grad():
        torch.testing.assert_close(pruned(ids).logits, masked.model(ids, use_cache=False).logits, atol=1e-5, rtol=0)
