"""The range of every number in a configuration, in one table.

Constructors rarely check their numbers: a clipping threshold of -1 turns gradients around, a read-ahead of -1 waits for
ever, a window of 0 divides by it. So a number that no row of the table names must not be negative, and the rows say
what is more or less than that. The kind (whole, text, ...) is checked elsewhere, against the constructor's annotation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from llmshearing.config.tree import walk
from llmshearing.data.settings import RANGES as DYNAMIC_TEXT
from llmshearing.data.settings import SEED, SEQUENCE
from llmshearing.utils.checks import Range

__all__ = ['RANGES', 'check_ranges', 'range_of']

ANY = Range(-math.inf)
POSITIVE = Range(0, above=True)
LONGEST = 0.99999  # memory of an optimizer; 1 never forgets and never learns
COUNT = Range(1)
WHOLE_COUNT = Range(1, whole=True)
ALL_OR_COUNT = Range(-1, zero=False)  # -1 stands for all
# Per rank, or one per core; a slip of a digit would start processes until the machine is full.
WORKERS = Range(0, max(64, os.cpu_count() or 1), whole=True)

# Dotted places, list entries under the name of their list; the first row that matches decides.
RANGES: tuple[tuple[str, Range], ...] = (
    # Free: no meaning of ours, or checked where they are read.
    ('variables.*', ANY),
    ('metadata.*', ANY),
    ('model.config_overrides.*', ANY),
    ('tokenizer.kwargs.*', ANY),
    ('compile_config.*', ANY),
    ('eval_gauntlet*', ANY),
    ('loggers.*.*interval*', COUNT),
    ('loggers.*.*_n_steps', COUNT),
    ('loggers.*', ANY),
    ('algorithms.targeted_pruning.*', ANY),
    ('algorithms.distillation.*', ANY),
    ('callbacks.dynamic_batch_loading.*', ANY),
    ('callbacks.run_report.*', ANY),
    ('callbacks.early_stopper.min_delta', ANY),
    ('*.reference_losses.*', ANY),
    # The run.
    ('seed', SEED),
    ('max_seq_len', SEQUENCE),
    ('icl_seq_len', COUNT),
    ('global_train_batch_size', COUNT),
    ('device_eval_batch_size', Range(1, 2**16, whole=True)),  # torch makes a list of that many
    ('device_train_microbatch_size', WHOLE_COUNT),
    ('*_subset_num_batches', ALL_OR_COUNT),
    ('save_num_checkpoints_to_keep', Range(-1)),
    ('dist_timeout', POSITIVE),
    ('max_split_size_mb', COUNT),
    # Optimizer and schedule.
    ('optimizer*.betas', Range(0, LONGEST)),
    ('optimizer*.momentum', Range(0, LONGEST)),
    ('optimizer*.weight_decay', Range(0, LONGEST)),  # the share of a weight that goes with a batch at the peak rate
    ('optimizer*.eps', Range(0, 0.01, above=True)),  # more outweighs the gradients
    ('scheduler.alpha*', Range(0, 1)),
    # Loaders, of this package or another.
    *((f'*loader*.{name}', allowed) for name, allowed in DYNAMIC_TEXT.items()),
    ('*loader*.num_workers', WORKERS),
    ('*loader*.prefetch_factor', COUNT),
    ('*loader*.num_canonical_nodes', COUNT),
    ('*loader*.cache_limit', COUNT),
    ('*loader*.packing_ratio', COUNT),
    ('*loader*.choose', COUNT),
    ('*loader*.repeat', POSITIVE),
    ('*loader*.max_leftover_bins_to_keep', Range(0)),
    # Algorithms.
    ('algorithms.gradient_clipping.clipping_threshold', POSITIVE),
    ('algorithms.alibi.max_sequence_length', COUNT),
    ('algorithms.alibi.train_sequence_length_scaling', POSITIVE),
    # Callbacks.
    ('callbacks.*.window_size', COUNT),
    ('callbacks.*batch_interval', COUNT),
    ('callbacks.*.batch_log_interval', COUNT),
    ('callbacks.*.log_interval', COUNT),
    ('callbacks.*.max_entries', COUNT),
    ('callbacks.*.batch_size', COUNT),
    ('callbacks.*.gpu_flops_available', POSITIVE),
    ('callbacks.*.max_shard_bytes', COUNT),
    ('callbacks.run_timeout.timeout', POSITIVE),
    ('callbacks.generate_callback.temperature', POSITIVE),
    ('callbacks.generate_callback.max_*', Range(1, 2**16)),  # tokens one after the other: a slip takes days
    ('callbacks.generate_callback.top_p', Range(0, 1, above=True)),
    # Sharding and profiling.
    ('fsdp_config.*degree', Range(-1, zero=False)),
    ('tp_config.tensor_parallel_degree', COUNT),
    ('profiler.schedule.active', COUNT),
)


def range_of(place: str) -> Range:
    """The range of the number at a dotted place, list entries under the name of their list."""
    return next((range_ for pattern, range_ in RANGES if fnmatchcase(place, pattern)), Range())


def check_ranges(config: Mapping[str, Any]) -> None:
    """Holds every number of a configuration against :data:`RANGES`.

    Raises:
        ValueError: Naming the place, the range and the number; for a learning rate of 0 where weights are to train.
    """
    for entry in walk(config):
        value, allowed = entry.value, range_of(entry.place)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or allowed is ANY:
            continue
        shown = entry.shown.replace('eval_loaders[', 'eval_loader[')  # llm-foundry's name of a list under eval_loader
        if value == 0 and not allowed.zero:
            raise ValueError(f'{shown}: expected a number above 0, or -1 for all, got {value!r}.')
        allowed.check(shown, value)
    settings = {entry.place: entry.value for entry in walk(config)}
    if settings.get('optimizer.lr') == 0 and not settings.get('algorithms.targeted_pruning.freeze_weights'):
        raise ValueError(
            'optimizer.lr: 0 trains no weight; give a number above 0, or set '
            'algorithms.targeted_pruning.freeze_weights: true to train masks alone.'
        )
