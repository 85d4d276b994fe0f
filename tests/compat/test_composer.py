"""Canaries of compat.composer."""

import gc
import weakref
from types import SimpleNamespace

import torch
from composer import Callback, Trainer
from composer.callbacks import CheckpointSaver
from composer.models import ComposerClassifier, huggingface
from composer.trainer import _patch_pytorch
from composer.utils import checkpoint
from torch import nn
from torch.distributed.fsdp._flat_param import FlatParamHandle
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing.compat import composer
from tests.tiny_run import tiny_source, tiny_tokenizer, tiny_trainer


def test_install_gives_composer_the_two_names_it_uses():
    composer.install()
    composer.install()
    assert callable(_patch_pytorch.original_unshard) and callable(_patch_pytorch.unshard_with_sync)
    assert callable(FlatParamHandle.unshard)


def test_a_sharded_checkpoint_is_not_asked_for_what_other_versions_do_not_write(monkeypatch):
    def stock(path, ignore_keys=None):
        scheduler = {'last_epoch': 4, '_is_initial': False}
        asked = {'state': {'model': 1, 'integrations': {'huggingface': {}}, 'schedulers': {'LambdaLR': scheduler}}}
        ignore_keys(asked)
        return asked['state']

    monkeypatch.setattr(checkpoint, 'load_sharded_checkpoint', stock)
    composer.install()
    composer.install()
    load, schedulers = checkpoint.load_sharded_checkpoint, {'LambdaLR': {'last_epoch': 4}}
    assert load.stock is stock
    assert load('path') == {'model': 1, 'schedulers': schedulers}
    assert load('path', ignore_keys=['state/model']) == {'schedulers': schedulers}
    assert load('path', ignore_keys=lambda asked: asked['state'].pop('model')) == {'schedulers': schedulers}


def test_a_causal_lm_is_known_without_the_code_of_every_other(monkeypatch):
    shape = {'hidden_size': 8, 'intermediate_size': 8, 'num_attention_heads': 2, 'num_hidden_layers': 1}
    causal = LlamaForCausalLM(LlamaConfig(vocab_size=8, **shape))
    composer.install()
    stock, asked = huggingface._is_registered_causal_lm.stock, []
    models = [causal, causal.model, nn.Linear(1, 1)]
    assert [stock(model) for model in models] == [True, False, False]

    def counted(model):
        asked.append(model)
        return stock(model)

    monkeypatch.setattr(huggingface, '_is_registered_causal_lm', counted)
    composer.install()
    composer.install()
    assert huggingface._is_registered_causal_lm.stock is counted
    assert [huggingface._is_registered_causal_lm(model) for model in models] == [True, False, False]
    assert asked == models[1:]


def test_a_checkpoint_holds_every_chat_template():
    shape = {'hidden_size': 8, 'intermediate_size': 8, 'num_attention_heads': 2, 'num_hidden_layers': 1}
    tokenizer, templates = tiny_tokenizer(), {'default': '{{ messages }}', 'rag': '{{ documents }}'}
    tokenizer.chat_template = templates
    model = huggingface.HuggingFaceModel(LlamaForCausalLM(LlamaConfig(vocab_size=97, **shape)), tokenizer)
    composer.install()
    composer.install()
    kept = model.get_metadata()['tokenizer']['tokenizer_config.json']['content']['chat_template']
    assert {item['name']: item['template'] for item in kept} == templates
    assert 'save_pretrained' not in vars(tokenizer)


def test_the_model_behind_a_wrapper_and_what_saves_checkpoints(tmp_path):
    model, saver = object(), CheckpointSaver(folder=str(tmp_path), save_interval='1ba')
    state = SimpleNamespace(model=SimpleNamespace(module=model), callbacks=[object(), saver])
    assert composer.unwrapped(state) is composer.unwrapped(SimpleNamespace(model=model)) is model
    assert composer.checkpoint_savers(state) == [saver]


def test_had_begun_is_true_of_errors_out_of_the_trainers_loop():
    def error_of(act):
        try:
            act()
        except RuntimeError as error:
            return error

    class Broken(ComposerClassifier):
        def loss(self, outputs, batch, *args, **kwargs):
            raise RuntimeError('in the loop')

    class Early(Callback):
        def fit_start(self, state, logger):
            raise RuntimeError('where training starts')

    def train(callback=None):
        data = TensorDataset(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
        Trainer(
            model=Broken(nn.Linear(3, 2), num_classes=2),
            train_dataloader=DataLoader(data, batch_size=2),
            max_duration='1ba',
            progress_bar=False,
            device='cpu',
            callbacks=callback,
        ).fit()

    def fail():
        raise RuntimeError('before it')

    assert composer.had_begun(error_of(train)) and not composer.had_begun(error_of(fail))
    assert not composer.had_begun(error_of(lambda: train(Early())))


def test_a_closed_trainer_lets_its_model_go(tmp_path):
    def train(close):
        trainer = tiny_trainer(source, [], batches=1)
        trainer.fit()
        close(trainer)
        return weakref.ref(trainer.state.model)

    source = tiny_source(tmp_path)
    model = train(lambda trainer: trainer.close())
    gc.collect()
    assert model() is not None  # else Composer does it by now, and close_trainer may go
    model = train(composer.close_trainer)
    gc.collect()
    assert model() is None
