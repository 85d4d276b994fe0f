"""Export: a source model and a set of final masks become a stock Hugging Face folder.

The tensors are those that the masked forward pass computes with (:class:`~llmshearing.models.cutting.CutPlan`),
the config is the source's with the target's shape. Only exact, uniform shapes leave: every remaining layer must
keep the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from llmshearing.checkpoints.tokenizer_files import write_tokenizer
from llmshearing.compat.configs import add_older_names
from llmshearing.compat.torch import CHECKPOINT_PREFIX
from llmshearing.compat.transformers import (
    attention_implementation,
    dtype_argument,
    forget_own_notes,
    load_complete_causal_lm,
    per_layer_lists,
    set_dtype,
)
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.models.cutting import CutPlan
from llmshearing.models.mixtures import check_aligned
from llmshearing.models.roles import expert_of
from llmshearing.models.shapes import ModelShape, shape_of, with_shape
from llmshearing.models.stored_names import stored_tensors
from llmshearing.planning.serving import position_warnings

__all__ = [
    'Tokenizer',
    'check_finite',
    'cut_tensors',
    'exported_config',
    'full_tensors',
    'open_strictly',
    'shape_left',
    'write_model_folder',
]

log = logging.getLogger(__name__)

# Settings of a generation config that matter only where tokens are drawn.
SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p', 'typical_p', 'epsilon_cutoff', 'eta_cutoff')

# As transformers has it in memory, or as Composer keeps its files in a checkpoint.
Tokenizer = PreTrainedTokenizerBase | Mapping[str, Mapping[str, Any]] | None


def shape_left(config: PretrainedConfig, plan: CutPlan) -> ModelShape:
    """The uniform shape that a cut leaves.

    Args:
        config (PretrainedConfig): The source's.
        plan (CutPlan): Says which units are kept.

    Raises:
        ValueError: If layers keep different numbers of units, or would stand where another kind of layer is expected,
            which no stock model can hold; names layers and numbers.
    """
    units, source, kinds_of = plan.units, plan.shape, plan.family.layer_types
    layer_types = None if kinds_of is None else kinds_of(config)
    for position, layer in enumerate(units.layers):
        if layer_types is not None and layer_types[layer] != layer_types[position]:
            raise ValueError(
                f'layer {layer} would stand at position {position}, where this model type has a layer of another kind '
                '(layer_types); keep layers in an order that repeats the pattern.'
            )
    counts = {layer: kept.counts(source) for layer, kept in units.layers.items()}
    padded = [layer for layer, kept in units.layers.items() if kept.padded is not None]
    if len(set(counts.values())) != 1 or padded or min(counts[next(iter(counts))][:3]) == 0:
        listed = ', '.join(
            f'layer {layer}: {kv} KV heads, {q} heads, {i} intermediate{f", {e} experts" if e else ""}'
            for layer, (kv, q, i, e) in counts.items()
        )
        raise ValueError(
            'the masks leave layers of different shapes, which a stock model cannot hold: '
            f'{listed or "no layer at all"}{f"; unequal groups in layers {padded}" if padded else ""}. '
            'Cut to a target shape (--masks target, where the run has one), or evaluate this model as it is.'
        )
    kv_heads, heads, intermediate, experts = next(iter(counts.values()))
    if experts < source.num_experts_per_tok:
        raise ValueError(
            f'the masks leave {experts} experts in every layer, fewer than the {source.num_experts_per_tok} that '
            'compute each token (num_experts_per_tok): a stock model cannot hold that; keep as many.'
        )
    return dataclasses.replace(
        source,
        num_hidden_layers=len(counts),
        hidden_size=units.hidden_count(source),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        num_experts=experts,
    )


def full_tensors(model: torch.nn.Module) -> Callable[[str], Tensor | None]:
    """What :func:`cut_tensors` gets tensors by: each parameter and buffer whole, on the CPU; None for other names.

    A sharded one is gathered from all ranks when it is asked for. Names are those without checkpointing.
    """
    named = (*model.named_buffers(), *model.named_parameters(remove_duplicate=False))
    held = {name.replace(CHECKPOINT_PREFIX, ''): tensor for name, tensor in named}

    def full(name: str) -> Tensor | None:
        tensor = held.get(name)
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        return None if tensor is None else tensor.detach().cpu()

    return full


def cut_tensors(plan: CutPlan, get: Callable[[str], Tensor | None], tied: bool) -> Iterator[tuple[str, Tensor]]:
    """Yields (parameter name, tensor) of the exported model, layers renumbered.

    Args:
        plan (CutPlan): The cut, on the CPU.
        get (Callable): Full source parameter by name, None where the source has none of that name. Called once for each
            name in a fixed order, so that it may gather a sharded parameter from all ranks.
        tied (bool): The LM head is the embedding; it is not written.
    """
    family = plan.family
    new_number = {layer: number for number, layer in enumerate(plan.units.layers)}
    layer_of = {path: layer for path, _, layer in family.modules(plan.shape.num_hidden_layers)}
    for path, cut in plan.cuts():
        if tied and path == family.head:
            continue
        full = {name: get(f'{path}.{name}') for name in (*cut.role.needed, *cut.role.optional)}
        missing = [name for name in cut.role.needed if full[name] is None]
        if missing:
            raise ValueError(
                f'the source has no parameter {path}.{missing[0]}; is it a complete {family.decoder} checkpoint?'
            )
        layer, expert, new_path = layer_of[path], expert_of(cut.role), path
        if layer is not None:
            new_path = f'{family.layer_path(new_number[layer])}{path.removeprefix(family.layer_path(layer))}'
        if layer is not None and expert is not None:
            new_path = new_path.replace(f'.experts.{expert}.', f'.experts.{plan.place_of_expert(layer, expert)}.', 1)
        for name, tensor in cut.parameters(full).items():
            yield f'{new_path}.{name}', tensor


def exported_config(config: PretrainedConfig, plan: CutPlan, dtype: torch.dtype) -> PretrainedConfig:
    """The source's config with the shape that a cut leaves, and settings of a finished model.

    Args:
        config (PretrainedConfig): The source's; not changed.
        plan (CutPlan): The cut.
        dtype (torch.dtype): Of the weights, as the config says it.

    Raises:
        ValueError: As :func:`shape_left`, and for a mixture of experts of sizes that transformers does not compute.
    """
    shape, layers = shape_left(config, plan), list(plan.units.layers)
    check_aligned(config, shape_of(config), shape)
    source, config = config, with_shape(config, shape, plan.family.has_head_dim)
    if getattr(config, 'max_window_layers', None) is not None:  # Qwen: the first so many layers attend to everything
        config.max_window_layers = sum(layer < config.max_window_layers for layer in layers)
    for name, entries in per_layer_lists(source).items():
        setattr(config, name, [entries[layer] for layer in layers])
    config.use_cache = True
    vars(config).pop('auto_map', None)  # leads to code, which is not copied
    set_dtype(config, dtype)
    return config


def write_model_folder(
    writer: ModelFolderWriter,
    config: PretrainedConfig,
    tensors: Iterator[tuple[str, Tensor]],
    tokenizer: Tokenizer,
    files: Mapping[str, str],
    dtype: torch.dtype | None,
) -> None:
    """Writes weights, config, tokenizer and generation settings, still under the writer's hidden path.

    Args:
        writer (ModelFolderWriter): Takes the files; not committed here.
        config (PretrainedConfig): Of the model that is written.
        tensors (Iterator[tuple[str, Tensor]]): Its parameters under their names in memory.
        tokenizer (Tokenizer): The tokenizer, or None.
        files (Mapping[str, str]): Small files of the source
            (:func:`~llmshearing.models.source_files.read_source_files`).
        dtype (torch.dtype | None): Type of the written weights; None keeps each tensor's own.

    Raises:
        ValueError: As :func:`check_finite`.
    """
    for name, tensor in tensors:
        for stored, part in stored_tensors(config, name, tensor):
            written = part if dtype is None else part.to(dtype)
            check_finite(stored, part, written)
            writer.add(stored, written)
    writer.finish_tensors()
    for warning in position_warnings(config):
        log.warning('%s', warning)
    forget_own_notes(config)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [model_class.__name__]  # the source may have been saved as another, without its head
    config.save_pretrained(writer.path)
    add_older_names(writer.path / 'config.json')
    if tokenizer is not None:
        write_tokenizer(tokenizer, writer.path, files)
    _write_generation_config(files, config, writer.path)


def check_finite(name: str, tensor: Tensor, written: Tensor) -> None:
    """Refuses NaN and infinity, also where the type that is written makes them.

    Raises:
        ValueError: Naming the tensor and what to do.
    """
    if torch.isfinite(written).all():
        return
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f'{name} holds NaN or infinity: the run diverged (export an earlier checkpoint), or float16 overflowed '
            '(take bfloat16 or float32).'
        )
    raise ValueError(
        f'{name} has values up to {tensor.abs().max():.3g}, which {str(written.dtype).removeprefix("torch.")} '
        'does not reach; take bfloat16 or float32.'
    )


def _write_generation_config(files: Mapping[str, str], config: PretrainedConfig, folder: Path) -> None:
    """Writes the source's, or what of it transformers agrees to write; without one, the special tokens of the config.

    Some sources have one that can be read and not saved, such as a temperature without ``do_sample``. How to sample
    then goes, since it changes nothing where nothing is sampled; if the rest cannot be saved either, all but special
    tokens goes.
    """
    if 'generation_config.json' in files:
        content = json.loads(files['generation_config.json'])
    else:
        content = GenerationConfig.from_model_config(config).to_diff_dict()
    if isinstance(content.get('pad_token_id'), int) and content['pad_token_id'] < 0:  # transformers 5 does not save it
        content['pad_token_id'] = None
    unsampled = {} if content.get('do_sample') else {key: content[key] for key in content if key not in SAMPLING}
    special = {key: content[key] for key in content if key in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
    for attempt in (content, unsampled or content, special):
        try:
            GenerationConfig.from_dict(attempt).save_pretrained(folder)
        except ValueError as error:
            reason = ' '.join(str(error).split())
            continue
        left_out = sorted(content.keys() - attempt.keys())
        if left_out:
            log.warning(
                "Of the source's generation_config these are left out, as transformers does not save it with them: %s "
                '(%s)',
                ', '.join(left_out),
                reason,
            )
        return


def open_strictly(folder: Path, dtype: torch.dtype = torch.float32, config: PretrainedConfig | None = None) -> Any:
    """Opens a model folder with transformers and refuses missing, extra or mis-shaped tensors.

    Args:
        folder (Path): The folder.
        dtype (torch.dtype): To compute in.
        config (PretrainedConfig | None): Of a folder that another version of transformers may have written
            (:func:`~llmshearing.models.source_config.read_config`). Default: as the installed one reads it.

    Raises:
        ValueError: Naming the tensors.
    """
    config = config or AutoConfig.from_pretrained(folder, trust_remote_code=False)
    settings = {**dtype_argument(dtype), 'config': config, 'attn_implementation': attention_implementation(config)}
    # Tensors of another shape are listed like the others, which transformers would end with an error of its own.
    return load_complete_causal_lm(str(folder), folder, ignore_mismatched_sizes=True, **settings).eval()
