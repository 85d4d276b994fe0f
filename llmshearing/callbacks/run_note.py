"""What ``run_report`` notes beside the metrics: sizes, settings, where the result is, which units the masks keep."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from composer.core import State
from composer.utils import dist, format_name_with_dist_and_time
from llmfoundry.callbacks.hf_checkpointer import HuggingFaceCheckpointer
from llmfoundry.data.text_data import StreamingTextDataset

from llmshearing.algorithms.targeted_pruning import TargetedPruning, find_pruning
from llmshearing.callbacks.dynamic_batch_loading import DynamicBatchLoading
from llmshearing.callbacks.export_pruned import ExportPruned
from llmshearing.compat.composer import checkpoint_savers, unwrapped
from llmshearing.data.fingerprint import describe_tokenizer
from llmshearing.data.mds import read_tokens
from llmshearing.data.streams import stream_folder
from llmshearing.metrics.pruning_record import read_content, record_of, source_parameters
from llmshearing.metrics.run_log import STATE_VERSION
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.models.units import kept_units
from llmshearing.reports.kept import binned

__all__ = ['model_sizes', 'run_note', 'tokenizer_note']

MEASURED = 256  # sequences of each evaluation set; decoding them takes about a second


def model_sizes(state: State, pruned: Path | None) -> dict[str, Any]:
    """Sizes of the model before (``source``) and after pruning (``result``), each None where that does not apply."""
    model = unwrapped(state)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        shape: ModelShape | None = shape_of(model.model.config)
    except (AttributeError, ValueError):  # not a Hugging Face decoder that we know the shape of
        shape = None
    own = {'parameters': parameters, 'shape': None if shape is None else shape.as_dict()}
    pruning = find_pruning(state)
    if pruning is not None:
        result = None
        if isinstance(pruning.target, ModelShape):
            count = count_parameters(layout_of(model.model.config), pruning.target).total
            result = {'parameters': int(count), 'shape': pruning.target.as_dict()}
        return {'source': own, 'result': result}
    if pruned is None:
        return {'source': None, 'result': own}
    record = read_content(pruned)
    try:
        count = source_parameters(record, layout_of(model.model.config))
    except ValueError:
        return {'source': None, 'result': own}
    return {'source': {'parameters': count, 'shape': record.get('source_shape')}, 'result': own}


def tokenizer_note(state: State) -> dict[str, Any] | None:
    """What losses of other vocabularies are compared by: that of the tokenizer, and bytes of text per token.

    Of evaluation sets on this machine, by label; None for a run without any of tokens.
    """
    loaders: dict[str, Any] = {one.label.removeprefix('eval/'): one.dataloader.dataloader for one in state.evaluators}
    found = {label: getattr(loader, 'dataset', None) for label, loader in loaders.items()}
    datasets = {label: dataset for label, dataset in found.items() if isinstance(dataset, StreamingTextDataset)}
    if not datasets:
        return None
    tokenizer: Any = next(iter(datasets.values())).tokenizer
    bytes_per_token = {}
    for label, dataset in datasets.items():
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # not here yet, not tokenized, or empty
            rows = [
                row.tolist() for one in dataset.streams for row in islice(read_tokens(stream_folder(one)), MEASURED)
            ]
            plain = {'skip_special_tokens': True, 'clean_up_tokenization_spaces': False}
            size = sum(len(tokenizer.decode(row, **plain).encode()) for row in rows)
            bytes_per_token[label] = size / sum(map(len, rows))
    return {'vocabulary': describe_tokenizer(tokenizer)['vocabulary'], 'bytes_per_token': bytes_per_token}


def run_note(state: State, facts: dict[str, Any], began: float, due: int | None) -> dict[str, Any]:
    """What the page needs besides the metrics, as plain types.

    Args:
        state (State): Of the run.
        facts (dict[str, Any]): What stays as it is: :func:`model_sizes` and :func:`tokenizer_note`.
        began (float): When this process began to train.
        due (int | None): Unix time by which it will have noted something anew unless it was killed; None where it
            trains no more.
    """
    elapsed, pruning, spent = state.get_elapsed_duration(), find_pruning(state), state.timestamp.total_wct
    return {
        'version': STATE_VERSION,
        'batch': state.timestamp.batch.value,
        'tokens': state.timestamp.token.value,
        'elapsed_share': None if elapsed is None else min(float(elapsed.value), 1.0),
        'max_duration': None if state.max_duration is None else state.max_duration.to_timestring(),
        'seconds': spent.total_seconds() or None,
        'closed': due is None,
        'due': due,
        'noted': datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC'),
        'settings': _settings(state),
        'exported': _exported(state, began),
        'saves': bool(checkpoint_savers(state)),
        'references': _references(state),
        **facts,
        'pruning': None if pruning is None else _masks(pruning, state),
    }


def _settings(state: State) -> dict[str, Any]:
    """What a person asks of a run that is not in its numbers."""
    pruning = find_pruning(state)
    rates = [(type(one).__name__, one.param_groups[0]) for one in state.optimizers]
    settings = {
        'ranks': dist.get_world_size(),
        'precision': str(getattr(state.precision, 'value', state.precision)),
        'micro-batch per rank': state.device_train_microbatch_size,
        'seed': state.rank_zero_seed,
        'optimizer': ', '.join(f'{name}, lr {group.get("initial_lr", group["lr"]):g}' for name, group in rates),
        'mask learning': None if pruning is None else pruning.mask_learning,
        'algorithms': ', '.join(type(algorithm).__name__ for algorithm in state.algorithms),
    }
    settings |= {name: version(name) for name in ('torch', 'transformers', 'mosaicml')}
    return {name: value for name, value in settings.items() if value not in (None, '')}


def _exported(state: State, began: float) -> dict[str, str] | None:
    """Where the result is, once this process has written it: that of ``export_pruned``, or of ``hf_checkpointer``."""
    found: list[Path] = []
    for callback in state.callbacks:
        if isinstance(callback, ExportPruned):
            found += [callback.folder / 'config.json']
        elif isinstance(callback, HuggingFaceCheckpointer) and '://' not in callback.save_dir_format_str:
            folder = format_name_with_dist_and_time(callback.save_dir_format_str, state.run_name, state.timestamp)
            found += Path(folder).glob('huggingface/*/config.json')
    written = {path: path.stat().st_mtime for path in found if path.is_file()}
    last = max(written, key=written.__getitem__, default=None)
    return None if last is None or written[last] < began else {'folder': str(last.parent)}


def _references(state: State) -> dict[str, float] | None:
    """Reference losses of the mixture, which is logged at the end of a round only; None where no callback mixes."""
    mixing = next((one for one in state.callbacks if isinstance(one, DynamicBatchLoading)), None)
    return None if mixing is None else dict(mixing.reference_losses)


def _masks(pruning: TargetedPruning, state: State) -> dict[str, Any]:
    """The pruning record if pruning ended now, and the masks as they are: in the Lagrangian way P(z > 0) of each unit.

    Values have three decimals; of the intermediate dimensions there are the means that a page can show.
    """
    units = kept_units(pruning.final_masks(), pruning.source)
    record = dataclasses.asdict(record_of(pruning, units, state.timestamp.batch.value, state.timestamp.token.value))
    del record['scores'], record['source_name'], record['shape'], record['source_parameters']
    masks = {}
    for axis, kept in pruning.learner.expected_kept().items():
        values = kept.double().numpy()
        if axis == 'intermediate':
            values = binned(values)
        masks[axis] = values.round(3).tolist()
    return {**record, 'mask_values': masks, 'tolerance': pruning.settings.tolerance}
