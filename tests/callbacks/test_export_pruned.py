"""The export at the end of a run, as it would be on a GPU and with mistaken settings."""

import json
import os
import shutil
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from composer.utils import dist
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmshearing.algorithms.targeted_pruning import TargetedPruning
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.export.probe import probe_input
from tests.dynamic_text_world import on_ranks
from tests.tiny_run import sequences_spec, tiny_trainer

SAMPLED = {'temperature': 0.6, 'top_p': 0.9}
KEPT = {'eos_token_id': 5, 'do_sample': False, 'suppress_tokens': [7], 'max_new_tokens': 33, 'stop_strings': ['x']}
TARGET = {'num_hidden_layers': 3, 'hidden_size': 36, 'intermediate_size': 40}


def pruned_with(source, export):
    pruning = TargetedPruning(TARGET, mask_learning='progressive', warmup='1ba')
    trainer = tiny_trainer(source, [pruning], batches=3, callbacks=[export])
    trainer.fit()
    trainer.close()
    return AutoConfig.from_pretrained(export.folder)


@pytest.mark.parametrize('learning', ['progressive', 'lagrangian'])
def test_a_warm_up_that_does_not_end_is_refused_before_the_first_step(source, tmp_path, learning):
    def trainer(warmup, **settings):
        pruning = TargetedPruning(TARGET, mask_learning=learning, warmup=warmup)
        return tiny_trainer(source, [pruning], batches=3, callbacks=[ExportPruned(str(tmp_path / 'out'), **settings)])

    for warmup in ('4ba', '1.5dur'):
        run = trainer(warmup)
        with pytest.raises(ValueError, match=f'warmup is {warmup} and the run ends after 3ba'):
            run.fit()
        assert run.state.timestamp.batch == 0
    trainer('4ba', allow_unconverged=True).fit()
    assert AutoConfig.from_pretrained(tmp_path / 'out').hidden_size == 36


@pytest.mark.parametrize(
    'settings', [{'mask_learning': 'one_shot', 'scores': 'magnitude'}, {'freeze_masks_after': '2ba'}]
)
def test_masks_that_are_frozen_in_time_need_no_warm_up_to_end(source, tmp_path, settings):
    pruning = TargetedPruning(TARGET, warmup='40ba', **settings)
    tiny_trainer(
        source,
        [pruning],
        batches=3,
        callbacks=[ExportPruned(str(tmp_path / 'out'))],
        eval_dataloader=sequences_spec(8, 4),
    ).fit()
    assert AutoConfig.from_pretrained(tmp_path / 'out').hidden_size == 36


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_built(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='file/out cannot be made, as .*/file is no folder; choose another place'):
        ExportPruned(str(tmp_path / 'file' / 'out'))
    with pytest.raises(ValueError, match='folder: /proc/out cannot be written .*choose another folder'):
        ExportPruned('/proc/out')
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def export_from(rank, source, disk, message):
    os.chdir(disk / str(rank))
    dist.initialize_dist('cpu')
    pruning = TargetedPruning(TARGET, mask_learning='progressive', warmup='1ba')
    trainer = tiny_trainer(source, [pruning], batches=2, callbacks=[ExportPruned('out')])
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        trainer.fit()
    assert int(trainer.state.timestamp.batch) == (2 if message is None else 0)
    torch.distributed.destroy_process_group()


def test_the_first_rank_alone_decides_whether_the_folder_is_taken(source, tmp_path):
    for rank in '01':  # disks of two nodes
        (tmp_path / rank).mkdir()
    (tmp_path / '1' / 'out').mkdir()
    on_ranks(2, export_from, source, tmp_path, None)
    assert (tmp_path / '0' / 'out' / 'config.json').is_file()
    (tmp_path / '1' / 'out').rmdir()
    on_ranks(2, export_from, source, tmp_path, 'export_pruned: out exists already')


def test_a_generation_config_that_transformers_does_not_save_costs_no_model(source, tmp_path, caplog):
    other = tmp_path / 'source'
    shutil.copytree(source, other)
    (other / 'generation_config.json').write_text(json.dumps({**SAMPLED, **KEPT}))
    with warnings.catch_warnings():
        warnings.simplefilter('always')  # transformers refuses what it would warn of, were it heard
        pruned_with(other, ExportPruned(str(tmp_path / 'out')))
    written = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
    assert KEPT.items() <= written.items() and not written.keys() & SAMPLED.keys()
    assert 'these are left out, as transformers does not save it with them: temperature, top_p (' in caplog.text


def test_a_value_that_float16_does_not_reach_is_refused(source, tmp_path):
    other = tmp_path / 'source'
    shutil.copytree(source, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.embed_tokens.weight[96] = 70000.0  # of a token that the probe does not have
    model.save_pretrained(other)
    assert 96 not in probe_input(97)
    with pytest.raises(ValueError, match='embed_tokens.weight has values up to 7e[+]04, which float16 does not reach'):
        pruned_with(other, ExportPruned(str(tmp_path / 'out'), dtype='float16'))
    assert not list(tmp_path.glob('*out*'))


def test_tf32_does_not_make_the_exported_model_look_wrong(source, tmp_path, monkeypatch):
    exact = F.linear

    def rounding(x, weight, bias=None):
        if torch.backends.cuda.matmul.allow_tf32:  # ten bits of the mantissa, as a GPU would
            x, weight = ((value.detach().view(torch.int32) & ~0x1FFF).view(torch.float32) for value in (x, weight))
        return exact(x, weight, bias)

    class OnAGpu(ExportPruned):
        def fit_end(self, state, logger):
            state.model.model.register_forward_pre_hook(lambda *_: setattr(F, 'linear', rounding))
            state.model.model.register_forward_hook(lambda *_: setattr(F, 'linear', exact))
            super().fit_end(state, logger)

    monkeypatch.setattr(F, 'linear', exact)  # whatever happens, put it back
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # as Composer sets it on GPUs
    try:
        assert pruned_with(source, OnAGpu(str(tmp_path / 'out'))).hidden_size == 36
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_flash_attention_is_not_asked_for_float32(source, tmp_path, monkeypatch):
    calls = []

    def kernel(module, query, *args, **kwargs):
        calls.append(query.dtype)
        raise RuntimeError('FlashAttention only support fp16 and bf16 data type')

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, 'flash_attention_2', kernel)

    class WithFlashAttention(ExportPruned):
        def fit_end(self, state, logger):
            config = state.model.model.config
            config._attn_implementation = 'flash_attention_2'
            super().fit_end(state, logger)
            assert config._attn_implementation == 'flash_attention_2'

    assert pruned_with(source, WithFlashAttention(str(tmp_path / 'out'))).hidden_size == 36 and not calls


def test_a_remote_folder_is_refused():
    with pytest.raises(ValueError, match="folder on this machine, got 's3://bucket/pruned'"):
        ExportPruned('s3://bucket/pruned')


def test_what_can_be_done_after_a_refusal_is_said_truly(source, tmp_path, caplog):
    def unconverged(**settings):
        pruning = TargetedPruning(TARGET, mask_learning='lagrangian', learning_rate=1e-3)
        callbacks = [ExportPruned(str(tmp_path / 'out'))]
        return tiny_trainer(source, [pruning], batches=2, callbacks=callbacks, **settings)

    with pytest.raises(ValueError, match='to cut to the target anyway\\.$'):
        unconverged().fit()
    assert 'without a checkpoint the trained weights are lost' in caplog.text
    with pytest.raises(ValueError, match='the last checkpoint can be exported'):
        unconverged(save_folder=str(tmp_path / 'checkpoints')).fit()
    caplog.clear()
    pruned_with(source, ExportPruned(str(tmp_path / 'progressive')))  # whose masks are at their target by the schedule
    assert 'save_folder' not in caplog.text
