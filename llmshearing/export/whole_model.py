"""A multimodal model whose text part is a smaller decoder: the way back from :mod:`~llmshearing.export.text_part`.

What sees or hears is carried along bit for bit. It hands over vectors of the text part's hidden size, in the text
part's basis, so both must be the source's: layers, heads and MLPs may be fewer.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.checkpoints.multimodal import MultimodalWeights, read_multimodal_weights
from llmshearing.checkpoints.source import check_weights, read_weights
from llmshearing.checkpoints.weight_files import check_has_config, weight_files
from llmshearing.compat.configs import dump_config
from llmshearing.compat.transformers import dtype_of, load_multimodal
from llmshearing.export.model_card import derived_card
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.settings import WriteSettings
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.export.text_agreement import compare_inside, logits_on_text
from llmshearing.export.text_part import text_config
from llmshearing.models.families import family_of
from llmshearing.models.source_config import read_config
from llmshearing.models.source_files import TEMPLATE_FOLDER, public_name, read_source_files, source_licence
from llmshearing.utils.files import load_json, refuse_unwritable
from llmshearing.utils.paths import refuse_existing

__all__ = ['WholeModel', 'write_whole_model']

SAME_BASIS = 0.5  # cosine of the embeddings' rows: training turns them little, a rotation leaves about none of it
OWN_SETTINGS = ('architectures', 'auto_map', 'transformers_version', '_name_or_path')  # of a config that stands alone


@dataclasses.dataclass(frozen=True)
class WholeModel:
    """What was written.

    Attributes:
        model_type (str): transformers' name of the multimodal model.
        parameters (int): Of the whole, a tied LM head counted once.
        replaced (int): Tensors of its text part.
        carried (int): Tensors of the source's other parts.
        difference (float): Largest one of its logits on text from the decoder's.
        left_out (str): Settings of the decoder that transformers does not follow in the whole; empty if none.
    """

    model_type: str
    parameters: int
    replaced: int
    carried: int
    difference: float
    left_out: str


def write_whole_model(source: Path, decoder: Path, output: Path, overwrite: bool = False) -> WholeModel:
    """Writes a multimodal model folder with another decoder in its text part's place, and opens it with transformers.

    Args:
        source (Path): Folder of a model whose config has a ``text_config``.
        decoder (Path): Model folder that was made from its text part, of the same hidden size and vocabulary.
        output (Path): Folder to write.
        overwrite (bool): Replace an existing model folder. Default: ``False``.

    Raises:
        ValueError: If the decoder does not go with the source's other parts, if the output exists and may not be
            replaced, or if what was written does not open or computes something else on text.
    """
    source, decoder, output = Path(source), Path(decoder), Path(output)
    for folder in (source, decoder):
        check_has_config(str(folder), folder)
    whole, config = read_config(source), read_config(decoder)
    _check_sizes(source, text_config(source, whole), decoder, config)
    refuse_existing('--output', output, overwrite, (source, decoder))
    refuse_unwritable('--output', output)
    check_weights(decoder, config)
    weights, stored = read_multimodal_weights(source, text_config(source, whole)), read_weights(decoder, config)
    embedding = f'{family_of(config).embedding_path}.weight'
    _check_basis(weights, stored[embedding].read(), embedding, decoder)
    settings = _settings(source, decoder, config)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from ((weights.name_inside(name), tensor.read()) for name, tensor in stored.items())
        yield from ((name, tensor.read()) for name, tensor in weights.others.items())

    files = read_source_files(str(source))
    with ModelFolderWriter(output, WriteSettings.max_shard_bytes, overwrite) as writer:
        _copy_small_files(source, writer.path)
        for name, tensor in tensors():
            writer.add(name, tensor)
        writer.finish_tensors()
        dump_config(settings, writer.path / 'config.json')
        (writer.path / 'README.md').write_text(_card(output.name, source, files), encoding='utf-8')
        dtype = dtype_of(config) or torch.float32
        alone = logits_on_text(open_strictly(decoder, dtype, config))
        difference, left_out = compare_inside(load_multimodal(writer.path, dtype), alone, str(writer.path))
        writer.commit()
    return WholeModel(whole.model_type, writer.parameters, len(stored), len(weights.others), difference, left_out)


def _check_sizes(source: Path, text: PretrainedConfig, decoder: Path, config: PretrainedConfig) -> None:
    for name in ('model_type', 'hidden_size', 'vocab_size'):
        wanted, got = getattr(text, name), getattr(config, name)
        if wanted != got:
            raise ValueError(
                f'{decoder} has {name}={got}, the text part of {source} {wanted}: its other parts go with that alone. '
                'Prune the text part without hidden_size in the target, and do not trim its vocabulary.'
            )


def _check_basis(weights: MultimodalWeights, embedding: Tensor, name: str, decoder: Path) -> None:
    if name not in weights.text:
        raise ValueError(f'the source has no tensor {name} in its text part; copy it again.')
    pair = (tensor.float() for tensor in (weights.text[name].read(), embedding))
    cosine = torch.nn.functional.cosine_similarity(*pair, dim=-1).median().item()
    if cosine < SAME_BASIS:
        raise ValueError(
            f"{decoder}: its embedding is not the source's (median cosine {cosine:.2f}): it comes from a rotated "
            "source or from another one, and the source's other parts write into the basis that it had. Prune the text "
            'part as it is, without `llmshearing rotate`.'
        )


def _settings(source: Path, decoder: Path, config: PretrainedConfig) -> dict[str, Any]:
    """The source's config.json with the decoder's as its text part."""
    settings, text = (load_json(folder / 'config.json') for folder in (source, decoder))
    if 'text_config' not in settings:
        raise ValueError(
            f'{source}: its config.json has the settings of its text part among the others; open it with transformers '
            'and save its config once more.'
        )
    settings['text_config'] = {key: value for key, value in text.items() if key not in OWN_SETTINGS}
    dtypes = {key: text[key] for key in ('dtype', 'torch_dtype') if key in settings and key in text}
    return {**settings, **dtypes, 'tie_word_embeddings': config.tie_word_embeddings}


def _copy_small_files(source: Path, folder: Path) -> None:
    """Tokenizer, processor, generation settings, licence: what is neither weights nor said anew."""
    weights = {path.name for path in weight_files(source)}
    for path in (*source.iterdir(), *source.glob(f'{TEMPLATE_FOLDER}/*.jinja')):
        new = path.name in ('config.json', 'README.md') or path.name.endswith('.index.json')
        if path.is_file() and not new and path.name not in weights and path.suffix != '.py':
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)


def _card(name: str, source: Path, files: dict[str, str]) -> str:
    public, licence = public_name(str(source)), source_licence(files)
    what = (
        f'{public} with a pruned text part. Its other parts are those of the source, bit for bit, and were not trained '
        'to go with it: look at what it says of images before you use it.'
    )
    return derived_card(licence, 'structured-pruning', public, name, what)
