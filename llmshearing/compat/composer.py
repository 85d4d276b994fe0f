"""Composer 0.32: what is behind its wrappers, and what it lacks on versions of PyTorch that it does not know."""

from __future__ import annotations

import atexit
import functools
import re
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composer import Trainer
    from composer.callbacks import CheckpointSaver
    from composer.core import State

__all__ = ['checkpoint_savers', 'close_trainer', 'had_begun', 'install', 'unwrapped']


def install() -> None:
    """Changes what Composer does on versions that it does not know; a second time, nothing.

    - Two names that it defines for PyTorch up to 2.7.0 only, and uses with every version, are given to it.
      ``device_train_microbatch_size: auto`` with a parallelism config otherwise ends in a NameError. They guard FSDP1
      when one rank alone runs out of memory; FSDP2, which is what masks run under, never used them.
    - A sharded checkpoint is not asked for what nobody needs and other versions do not write: the copy of the model's
      config and tokenizer, key by key as transformers has them, which Composer does not load, and a mark that PyTorch's
      schedulers have while they are built.
    - A model is asked whether it is a causal LM by its own config first. Composer imports the code of every model that
      transformers has, in each process.
    - Weights that are trained and were frozen in a checkpoint are told as such. PyTorch advises an option of its own.
    - A tokenizer of several chat templates is kept with all of them in its tokenizer_config.json. transformers 5 saves
      them in a folder, which Composer takes for a file of a kind that it does not know.
    """
    from composer.core import State
    from composer.models import huggingface
    from composer.trainer import _patch_pytorch
    from composer.utils import checkpoint
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    if not hasattr(_patch_pytorch, 'original_unshard'):
        _patch_pytorch.original_unshard = FlatParamHandle.unshard
        _patch_pytorch.unshard_with_sync = FlatParamHandle.unshard
    for place, name, wrap in (
        (checkpoint, 'load_sharded_checkpoint', _ask_for_less),
        (huggingface, '_is_registered_causal_lm', _ask_own_config),
        (State, 'load_optim_state', _name_what_was_frozen),
        (huggingface.HuggingFaceModel, 'get_metadata', _keep_templates_inside),
    ):
        stock = getattr(place, name)
        if not hasattr(stock, 'stock'):
            ours: Any = wrap(stock)
            ours.stock = stock
            setattr(place, name, ours)


def unwrapped(state: State) -> Any:
    """The run's model itself, also where DistributedDataParallel wraps it."""
    return getattr(state.model, 'module', state.model)


def close_trainer(trainer: Trainer) -> None:
    """Closes a Trainer for good, so that its model and optimizer can go.

    Composer keeps the state of every Trainer until the process exits, to close it then; of one that is closed, too.
    """
    trainer.close()
    atexit.unregister(trainer.engine._close)


def checkpoint_savers(state: State) -> list[CheckpointSaver]:
    """What saves the run's checkpoints: the Trainer's own saver and those of the user."""
    from composer.callbacks import CheckpointSaver

    return [callback for callback in state.callbacks if isinstance(callback, CheckpointSaver)]


def had_begun(error: BaseException) -> bool:
    """Whether training had begun when an error was raised: in the Trainer's loop, after what is told of its start."""
    from composer.core import Event

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    at_start = any(frame.f_locals.get('event') == Event.FIT_START for frame in frames)
    return not at_start and any(frame.f_code.co_name == '_train_loop' for frame in frames)


def _ask_for_less(stock: Callable) -> Callable:
    from composer.utils.checkpoint import glob_filter

    def load_sharded_checkpoint(*args: Any, ignore_keys: Any = None, **settings: Any) -> Any:
        def forget(state_dict: dict[str, Any]) -> None:
            if ignore_keys:
                (ignore_keys if callable(ignore_keys) else glob_filter(ignore_keys))(state_dict)
            state = state_dict.get('state', {})
            state.pop('integrations', None)
            for scheduler in state.get('schedulers', {}).values():
                scheduler.pop('_is_initial', None)

        return stock(*args, ignore_keys=forget, **settings)

    return load_sharded_checkpoint


def _name_what_was_frozen(stock: Callable) -> Callable:
    def load_optim_state(*args: Any, **settings: Any) -> None:
        try:
            stock(*args, **settings)
        except RuntimeError as error:
            found = re.search(r"Missing optimizer state for parameter '([^']+)'", str(error))
            if found is None:
                raise
            raise ValueError(
                f'The checkpoint has no optimizer state of {found[1]}: it was frozen when it was saved, and is trained '
                'now. To go on, freeze the same weights (optimizer.disable_grad, '
                'algorithms.targeted_pruning.freeze_weights); else begin a new run in another save_folder.'
            ) from error

    return load_optim_state


def _ask_own_config(stock: Callable) -> Callable:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    def is_registered_causal_lm(model: Any) -> bool:
        config: Any = type(getattr(model, 'config', None))
        own: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config] if config in MODEL_FOR_CAUSAL_LM_MAPPING else ()
        return isinstance(model, own) or stock(model)

    return is_registered_causal_lm


def _keep_templates_inside(stock: Callable) -> Callable:
    def get_metadata(self: Any) -> dict[str, Any]:
        tokenizer = self.tokenizer
        if not isinstance(getattr(tokenizer, 'chat_template', None), dict):
            return stock(self)
        tokenizer.save_pretrained = functools.partial(tokenizer.save_pretrained, save_jinja_files=False)
        try:
            return stock(self)
        finally:
            del tokenizer.save_pretrained

    return get_metadata
