"""``export_pruned``: at the end of pruning, writes the target model as a stock Hugging Face folder and checks it.

Every rank takes part in gathering parameters and in one probe forward of the masked model; rank 0 cuts, writes to a hidden
folder, opens it with transformers, compares logits, and only then gives the folder its name.
"""
from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, Optional

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from torch.distributed.tensor import DTensor

from llmshearing.algorithms.targeted_pruning import TargetedPruning, find_pruning
from llmshearing.algorithms.targeted_pruning.finish import unconverged
from llmshearing.conversion.hf_export import (
    cut_tensors,
    exported_config,
    kept_indices,
    shape_after,
    write_model_folder,
)
from llmshearing.conversion.shard_writer import ModelFolderWriter
from llmshearing.conversion.verify import probe_input, verify_folder
from llmshearing.models.cutting import CutPlan

__all__ = ['ExportPruned']

log = logging.getLogger(__name__)

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


class ExportPruned(Callback):
    """Exports the pruned model when training ends.

    Args:
        folder (str): Destination of the Hugging Face folder.
        dtype (str): ``'float32'``, ``'bfloat16'`` or ``'float16'``. Default: ``'float32'``.
        allow_unconverged (bool): Export although expected counts are further from the target than the algorithm's
            ``tolerance``. Default: ``False``.
        overwrite (bool): Replace an existing folder. Default: ``False``.
        max_shard_bytes (int): Largest safetensors file. Default: 5 GB.

    Raises:
        ValueError: At the start, if the run does not prune or the folder exists; at the end, if masks have not converged.
    """

    def __init__(
        self,
        folder: str,
        dtype: str = 'float32',
        allow_unconverged: bool = False,
        overwrite: bool = False,
        max_shard_bytes: int = 5 * 10**9,
    ):
        if dtype not in DTYPES:
            raise ValueError(f'dtype={dtype!r} is not possible; choose one of {", ".join(DTYPES)}.')
        self.folder, self.dtype = Path(folder), DTYPES[dtype]
        self.allow_unconverged, self.overwrite, self.max_shard_bytes = allow_unconverged, overwrite, max_shard_bytes

    def init(self, state: State, logger: Logger) -> None:
        if find_pruning(state) is None:
            raise ValueError('export_pruned exports what targeted_pruning learned; add `targeted_pruning` under `algorithms`.')

    def fit_start(self, state: State, logger: Logger) -> None:
        if self.folder.exists() and not self.overwrite:
            raise ValueError(f'export_pruned: {self.folder} exists already; choose another folder or set overwrite: true.')

    def fit_end(self, state: State, logger: Logger) -> None:
        pruning = find_pruning(state)
        self._refuse_unconverged(pruning)
        model = state.model.module if hasattr(state.model, 'module') else state.model
        masks = pruning.final_masks()
        expected, computed_in = _probe(model, masks)
        parameters = {
            name.replace(_CHECKPOINT_PREFIX, ''): parameter
            for name, parameter in model.model.named_parameters(remove_duplicate=False)
        }

        def full(name: str) -> Optional[Tensor]:
            parameter = parameters.get(name)
            if parameter is None:
                return None
            return parameter.full_tensor().cpu() if isinstance(parameter, DTensor) else parameter.detach().cpu()

        cutter, config = model.cutter, model.model.config
        plan = CutPlan(cutter.family, cutter.shape, masks)
        tensors = cut_tensors(cutter.family, plan, masks, full, config.tie_word_embeddings)
        if dist.get_global_rank() != 0:
            for _ in tensors:  # takes part in gathering
                pass
            return
        types = cutter.family.layer_types(config) if cutter.family.layer_types else None
        shape = shape_after(plan.units, cutter.shape, types)
        if shape != pruning.target:
            raise RuntimeError(f'the masks leave {shape}, the target is {pruning.target}; this is a bug in llmshearing.')
        with ModelFolderWriter(self.folder, self.max_shard_bytes, self.overwrite) as writer:
            write_model_folder(
                writer,
                exported_config(config, cutter.family, shape, self.dtype, list(plan.units.layers)),
                tensors,
                model.tokenizer,
                getattr(model.model, 'generation_config', None),
                self.dtype,
                {'pruning.json': self._record(pruning, plan, model.source, state)},
            )
            difference = verify_folder(writer.path, expected, computed_in, self.dtype)
            writer.commit()
        log.info('Exported %s to %s; largest logit difference from the masked model %.2g.', shape, self.folder, difference)
        logger.log_metrics({'export/logit_difference': difference})

    def _refuse_unconverged(self, pruning: TargetedPruning) -> None:
        away = unconverged(pruning.reports(), pruning.tolerance)
        if away and not self.allow_unconverged and pruning.frozen_masks is None:
            listed = '\n'.join(f'  - {report.describe()}' for report in away)
            raise ValueError(
                f'The masks have not converged to the target within {pruning.tolerance:.0%}; nothing was exported:\n{listed}\n'
                'Train longer, shorten lagrangian_warmup, or set allow_unconverged: true to cut to the target anyway '
                '(the last checkpoint can be exported without training again).',
            )

    def _record(self, pruning: TargetedPruning, plan: CutPlan, source: str, state: State) -> dict[str, Any]:
        """What was kept and how sure the masks were, for the folder's ``pruning.json``."""
        return {
            'source_shape': dataclasses.asdict(pruning.source),
            'target_shape': dataclasses.asdict(pruning.target),
            'mask_learning': pruning.mask_learning,
            'batches': state.timestamp.batch.value,
            'tokens': state.timestamp.token.value,
            'source_name': Path(source).name,
            'axes': [dataclasses.asdict(report) for report in pruning.reports()],
            'kept': kept_indices(plan.units),
            'scores': {axis: value.tolist() for axis, value in pruning.learner.scores().items() if axis != 'intermediate'},
        }


def _probe(model: Any, masks: dict[str, Tensor]) -> tuple[Tensor, torch.dtype]:
    """Logits of the masked model on the probe input, and the precision it computes in."""
    model.cutter.set_masks(masks)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model.model(probe_input(model.config.vocab_size).to(device), use_cache=False).logits
    model.train(was_training)
    return logits.float().cpu(), logits.dtype
