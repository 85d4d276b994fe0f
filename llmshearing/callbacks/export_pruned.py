"""``export_pruned``: at the end of pruning, writes the target model as a stock Hugging Face folder and checks it.

Every rank takes part in gathering parameters and in one probe forward of the masked model; rank 0 cuts, writes to a
hidden folder, opens it with transformers, compares logits, and only then gives the folder its name.
"""

from __future__ import annotations

import logging
from itertools import chain

from composer.core import Callback, State, Time
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.algorithms.targeted_pruning import TargetedPruning, find_pruning
from llmshearing.compat.composer import checkpoint_savers, unwrapped
from llmshearing.compat.torch import DTYPES
from llmshearing.export.model_card import Training
from llmshearing.export.model_folder import cut_tensors, full_tensors
from llmshearing.export.probe import probe_masked
from llmshearing.export.pruned_folder import Origin, check_shape_left, write_pruned_folder
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.export.verification import verify_folder
from llmshearing.masks.state import refuse_open_widths, refuse_unconverged
from llmshearing.metrics.last_losses import last_losses
from llmshearing.metrics.logger import metrics_of
from llmshearing.metrics.names import LOGIT_DIFFERENCE
from llmshearing.models.cutting import CutPlan
from llmshearing.utils.checks import check_one_of
from llmshearing.utils.files import refuse_unwritable
from llmshearing.utils.paths import local_destination, refuse_existing
from llmshearing.utils.ranks import from_rank_0

__all__ = ['ExportPruned']

log = logging.getLogger(__name__)

UNCONVERGED_REMEDY = 'Train longer, shorten warmup, or set allow_unconverged: true to cut to the target anyway'
FROM_CHECKPOINT = ' (the last checkpoint can be exported without training again: llmshearing export).'


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
        ValueError: At the start, if the run does not prune, is shorter than the warm-up, or the folder exists or cannot
            be written; at the end, if masks have not converged.
    """

    def __init__(
        self,
        folder: str,
        dtype: str = 'float32',
        allow_unconverged: bool = False,
        overwrite: bool = False,
        max_shard_bytes: int = 5 * 10**9,
    ):
        check_one_of('dtype', dtype, DTYPES)
        self.dtype = DTYPES[dtype]
        self.folder = local_destination('folder', folder)
        self.allow_unconverged, self.overwrite, self.max_shard_bytes = allow_unconverged, overwrite, max_shard_bytes
        self.difference: float | None = None  # of the exported folder's logits, once it is checked

    def init(self, state: State, logger: Logger) -> None:
        _pruning(state)

    def fit_start(self, state: State, logger: Logger) -> None:
        pruning = _pruning(state)
        refuse_open_widths(pruning)
        from_rank_0(self._check_place)  # the only one that writes; other nodes may have another folder there, or none
        if not self.allow_unconverged and not pruning.reaches_target(state):
            warmup, duration = Time.from_input(pruning.settings.warmup), state.max_duration
            assert duration is not None  # the Trainer sets it before training starts
            raise ValueError(
                f'export_pruned: warmup is {warmup.to_timestring()} and the run ends '
                f'after {duration.to_timestring()}, so the target would not be reached before the last batch and '
                'nothing exported; shorten the warm-up, train longer, or set allow_unconverged: true.'
            )
        may_miss = not (self.allow_unconverged or pruning.learner.removes_for_good)
        if may_miss and not checkpoint_savers(state):
            log.warning(
                'export_pruned without save_folder: masks that are too far from the target at the end are not '
                'exported, and without a checkpoint the trained weights are lost; set save_folder.'
            )

    def _check_place(self) -> None:
        refuse_existing('export_pruned', self.folder, self.overwrite)
        refuse_unwritable('export_pruned', self.folder)

    def fit_end(self, state: State, logger: Logger) -> None:
        pruning = _pruning(state)
        remedy = UNCONVERGED_REMEDY + (FROM_CHECKPOINT if checkpoint_savers(state) else '.')
        away = refuse_unconverged(pruning, pruning.settings.tolerance, self.allow_unconverged, remedy)
        model = unwrapped(state)
        masks = pruning.final_masks()
        model.cutter.norm_energies = pruning.norm_energies  # not there yet where no batch was trained
        expected = probe_masked(model.cutter, masks)
        cutter, config = model.cutter, model.model.config
        plan = CutPlan(cutter.family, cutter.shape, masks, energies=pruning.norm_energies)
        check_shape_left(config, plan, pruning.target)
        source, files = pruning.origin or (None, {})
        losses, losses_at = last_losses(state, metrics_of(logger))
        losses_of = f'the masked model (eval_masks: {pruning.settings.eval_masks})'
        now = state.timestamp
        origin = Origin(
            source=source,
            parameters=sum(parameter.numel() for parameter in model.model.parameters()),
            training=Training(now.batch.value, now.token.value, losses, losses_of, losses_at),
            unconverged=away,
            files=files,
            tokenizer=model.get_metadata()['tokenizer'] or None,
        )
        # Gathered twice, to be written and to be compared.
        written, meant = (cut_tensors(plan, full_tensors(model.model), config.tie_word_embeddings) for _ in range(2))
        if dist.get_global_rank() != 0:
            for _ in chain(written, meant):  # takes part in gathering
                pass
            return
        with ModelFolderWriter(self.folder, self.max_shard_bytes, self.overwrite) as writer:
            shape = write_pruned_folder(writer, pruning, config, plan, written, self.dtype, origin)
            difference = verify_folder(writer.path, expected, self.dtype, meant)
            writer.commit()
        self.difference = difference
        log.info(
            'Exported %s to %s; largest logit difference from the masked model %.2g.', shape, self.folder, difference
        )
        logger.log_metrics({LOGIT_DIFFERENCE: difference})


def _pruning(state: State) -> TargetedPruning:
    pruning = find_pruning(state)
    if pruning is None:
        raise ValueError(
            'export_pruned exports what targeted_pruning learned; add `targeted_pruning` under `algorithms`.'
        )
    return pruning
