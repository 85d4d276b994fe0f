"""transformers 4.51 and 5: what is spelled differently in configs, and what a step must not trip over.

transformers 5 keeps the kind of every layer in a list (``layer_types``), rotary settings in ``rope_parameters`` and the
type of the weights in ``dtype``. What that is for a config.json is in :mod:`llmshearing.compat.configs`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import huggingface_hub.errors

from llmshearing.compat.tokenizers import TokenizerLoader
from llmshearing.compat.versions import TRANSFORMERS_5
from llmshearing.utils.files import refuse_pointer
from llmshearing.utils.replaced import replaced

__all__ = [
    'EXPERTS_ARE_MODULES',
    'HEAD_OF_GPT_NEOX',
    'LEFT_OUT',
    'OPENS_UNEVEN_HEADS',
    'PER_LAYER_LISTS',
    'STRICT_ERROR',
    'WINDOWS_BY_LAYER',
    'attention_implementation',
    'attention_of',
    'build_multimodal',
    'check_valid',
    'dtype_argument',
    'dtype_of',
    'forget_own_notes',
    'ignores_windows',
    'install',
    'layer_kinds',
    'left_out_names',
    'load_causal_lm',
    'load_complete_causal_lm',
    'load_multimodal',
    'per_layer_lists',
    'read_tokenizer',
    'rotary_of',
    'set_attention',
    'set_dtype',
    'set_plain_rotary',
    'tied_names',
    'without_packed_masks',
]

# What a config of transformers 5 raises for a value that it does not take; configs of 4 raise a ValueError.
STRICT_ERROR: type[Exception] = huggingface_hub.errors.StrictDataclassError if TRANSFORMERS_5 else ValueError

# Whether models open whose hidden_size is no multiple of num_attention_heads, where head_dim is a setting of its own.
OPENS_UNEVEN_HEADS = not TRANSFORMERS_5

# Whether Qwen's sliding windows hold for the layers that the config names; transformers 4 gives them to every layer.
WINDOWS_BY_LAYER = TRANSFORMERS_5

# Settings of a config that hold one entry per decoder layer, read by position.
PER_LAYER_LISTS = ('layer_rope_theta', 'layer_types', 'no_rope_layers')

# Rotary settings that modelling code reads whatever their kind is; the last two scale queries (Ministral 3).
READ_BESIDE_ROTARY = ('rope_theta', 'partial_rotary_factor', 'llama_4_scaling_beta', 'original_max_position_embeddings')

# The LM head of GPT-NeoX in memory; in files it is `embed_out` for either generation.
HEAD_OF_GPT_NEOX = 'lm_head' if TRANSFORMERS_5 else 'embed_out'


# Whether each routed expert is a module of its own; since transformers 5 they are parameters of three dimensions, which
# files hold expert by expert nevertheless.
EXPERTS_ARE_MODULES = not TRANSFORMERS_5

# Model types whose code is another one here: attention of Nemotron, OLMoE and Qwen 2 MoE returns three values in
# transformers 4, all other types two, which is what a layer without any head returns in its place; it has no gpt-oss.
LEFT_OUT = () if TRANSFORMERS_5 else ('gpt_oss', 'nemotron', 'olmoe', 'qwen2_moe')

# Model types without PyTorch's attention.
NO_SDPA = ('gpt_oss', 'granite_swa')


def layer_kinds(config: Any) -> list[str] | None:
    """Kind of each layer (such as ``'sliding_attention'``) where the config lists them, else None."""
    kinds = getattr(config, 'layer_types', None)
    return list(kinds) if isinstance(kinds, (list, tuple)) else None


def per_layer_lists(config: Any) -> dict[str, Any]:
    """What a config has of :data:`PER_LAYER_LISTS`."""
    settings = {name: getattr(config, name, None) for name in PER_LAYER_LISTS}
    return {name: entries for name, entries in settings.items() if isinstance(entries, (list, tuple))}


def dtype_of(config: Any) -> Any:
    """Type of the weights that a config names: a ``torch.dtype`` or None."""
    return config.dtype if TRANSFORMERS_5 else config.torch_dtype


def set_dtype(config: Any, dtype: Any) -> None:
    """Names the type of the weights in a config."""
    setattr(config, 'dtype' if TRANSFORMERS_5 else 'torch_dtype', dtype)


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """The keyword argument of ``from_pretrained`` and ``from_config`` that names the type of the weights."""
    return {'dtype' if TRANSFORMERS_5 else 'torch_dtype': dtype}


def rotary_of(config: Any) -> dict[str, Any]:
    """Rotary settings of a LLaMA's config in the words of transformers 5: kind, base and what the kind has besides."""
    if TRANSFORMERS_5:
        return dict(config.rope_parameters)
    scaling = config.rope_scaling or {}
    kind = scaling.get('rope_type', scaling.get('type', 'default'))
    return {**scaling, 'rope_type': kind, 'rope_theta': config.rope_theta}


def set_plain_rotary(config: Any) -> None:
    """Replaces rotary settings by plain ones of the same base, in place: they change values and no sizes."""
    if not TRANSFORMERS_5:
        config.rope_scaling = None
    elif isinstance(getattr(config, 'rope_parameters', None), dict):
        config.rope_parameters = _plain_rotary(config.rope_parameters)


def _plain_rotary(rotary: Mapping[str, Any]) -> dict[str, Any]:
    if any(isinstance(value, Mapping) for value in rotary.values()):  # one set for each kind of layer
        return {kind: _plain_rotary(value) for kind, value in rotary.items() if isinstance(value, Mapping)}
    kept = {key: value for key, value in rotary.items() if key in READ_BESIDE_ROTARY}
    return {'rope_type': 'default', **kept}


def check_valid(config: Any) -> None:
    """What transformers 5 asks of a config before it is saved, and raises :data:`STRICT_ERROR` for; 4 asks nothing."""
    if hasattr(config, 'validate'):
        config.validate()


def forget_own_notes(config: Any) -> None:
    """Removes what transformers 4 notes on a config for itself and would write into config.json."""
    config.__dict__.pop('_attn_implementation_autoset', None)


def attention_implementation(config: Any, wanted: str = 'sdpa') -> str:
    """The attention to compute a model with: ``wanted``, or ``'eager'`` where that would leave something out.

    PyTorch's attention has no soft-capping of scores, which Gemma 2 asks for: transformers 4 left it out with a
    warning, 5.24 refuses. Nor has it attention sinks.
    """
    impossible = getattr(config, 'attn_logit_softcapping', None) or config.model_type in NO_SDPA
    return 'eager' if wanted == 'sdpa' and impossible else wanted


def attention_of(config: Any) -> str | None:
    """The attention that a config's model is computed with; None where nothing has chosen one yet."""
    return config._attn_implementation


def set_attention(config: Any, name: str | None) -> None:
    """Chooses the attention that a config's model is computed with."""
    config._attn_implementation = name


def tied_names(model: Any) -> tuple[str, ...]:
    """Names of the parameters that are another one's tensor where the config ties embedding and LM head."""
    return tuple(model._tied_weights_keys or ())


def left_out_names(model: Any) -> tuple[str, ...]:
    """Patterns of the names in files that no parameter belongs to and that loading leaves out."""
    return tuple(model._keys_to_ignore_on_load_unexpected or ())


def install() -> None:
    """Lets transformers 4 open the tokenizers that transformers 5 saves under its own class, ``TokenizersBackend``.

    transformers 4 looks for a tokenizer's class by its name among its own attributes, so one is added: its general
    class of tokenizers with a tokenizer.json, which is what the other is. It goes on saving itself as that.
    """
    import transformers

    if TRANSFORMERS_5 or hasattr(transformers, 'TokenizersBackend'):
        return

    class PreTrainedTokenizerFast(transformers.PreTrainedTokenizerFast):
        def __init__(self, *args: Any, **kwargs: Any):
            more = kwargs.get('extra_special_tokens')
            if isinstance(more, list):  # the list that version 4 calls additional_special_tokens
                kwargs.setdefault('additional_special_tokens', kwargs.pop('extra_special_tokens'))
            kwargs.pop('backend', None)
            super().__init__(*args, **kwargs)

    transformers.TokenizersBackend = PreTrainedTokenizerFast


def read_tokenizer(name: str | Path, **settings: Any) -> Any:
    """The tokenizer of a folder or of a model on the hub, as either generation saved it.

    Its ids are those of its ``tokenizer.json`` (:mod:`~llmshearing.compat.tokenizers`). No code of its own is run,
    unless ``settings``, those of ``from_pretrained``, ask for it.

    Raises:
        OSError: If there is none.
        ValueError: If it does not open. Of damaged files transformers and tokenizers raise whatever they stumble over.
    """
    install()
    for file in filter(Path.is_file, Path(name).glob('tokenizer*')):
        refuse_pointer(file)
    try:
        return TokenizerLoader.from_pretrained(name, **{'trust_remote_code': False, **settings})
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f'the tokenizer in {name} does not open ({type(error).__name__}: {error})') from error


def load_causal_lm(name: str | Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A causal language model and what of its weights was amiss, by kind; no code of its own is run.

    ``settings`` are those of ``from_pretrained``. Type checkers cannot follow what transformers writes of this pair,
    nor of the model's ``to`` and ``generate``.
    """
    from transformers import AutoModelForCausalLM

    with _without_bars():
        pair: Any = AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, trust_remote_code=False, **settings
        )
    return pair


def _without_bars() -> AbstractContextManager[None]:
    """Keeps transformers from drawing how far it has loaded a model, but not from how far it has downloaded one."""
    from transformers.utils import logging

    return replaced(logging, '_tqdm_active', False)


def load_complete_causal_lm(where: str, name: str | Path, **settings: Any) -> Any:
    """A causal language model none of whose weights is amiss; ``settings`` are those of ``from_pretrained``.

    Raises:
        ValueError: Naming ``where`` and the tensors that are missing, left over or of another shape.
    """
    return _refuse_incomplete(where, *load_causal_lm(name, **settings))


def _refuse_incomplete(where: str, model: Any, info: Mapping[str, Any]) -> Any:
    problems = {kind: names for kind, names in info.items() if names}
    if problems:
        raise ValueError(f'{where} does not open as a stock model: {problems}')
    return model


def load_multimodal(folder: Path, dtype: Any) -> Any:
    """A multimodal model folder in evaluation mode, by the class that its config names; no code of its own is run.

    Raises:
        ValueError: If this version of transformers has no such class, or tensors are missing, left over or of another
            shape.
    """
    from transformers import AutoConfig

    model_class = _own_class(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    with _without_bars():
        model, info = model_class.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **dtype_argument(dtype)
        )
    return _refuse_incomplete(str(folder), model, info).eval()


def build_multimodal(config: Any) -> Any:
    """A multimodal model with weights of no meaning, by the class that its config names.

    Raises:
        ValueError: If this version of transformers has no such class.
    """
    return _own_class(config)(config)


def _own_class(config: Any) -> Any:
    import transformers

    name = (config.architectures or ['none'])[0]
    if not hasattr(transformers, name):
        raise ValueError(
            f'{config.name_or_path}: transformers {transformers.__version__} has no class {name}, which its config '
            'names (architectures).'
        )
    return getattr(transformers, name)


def ignores_windows(config: Any) -> bool:
    """Whether this attention leaves out a config's sliding windows: Qwen's under transformers 4, with a warning."""
    return not TRANSFORMERS_5 and bool(getattr(config, 'use_sliding_window', False))


def without_packed_masks() -> AbstractContextManager[None]:
    """Keeps transformers 5 from making a mask per layer for tensors without data.

    It looks into position ids for several sequences in one row, and takes tensors whose data it cannot see for such.
    A real step has no such masks.
    """
    masking: Any = sys.modules.get('transformers.masking_utils')
    if masking is None or not hasattr(masking, 'find_packed_sequence_indices'):
        return contextlib.nullcontext()
    return replaced(masking, 'find_packed_sequence_indices', lambda *args, **kwargs: None)
