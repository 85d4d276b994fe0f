"""``model_card``: a model card, the source's licence and older names in configs, in the folders of ``hf_checkpointer``.

So the result of continued pre-training can be shared as it is. ``hf_checkpointer`` has a hook for further files, called
on rank 0 before anything is uploaded; this callback goes there. What the card needs of the source is read before the
first step, while it is certainly there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from llmfoundry.callbacks.hf_checkpointer import HuggingFaceCheckpointer

from llmshearing.checkpoints.tokenizer_files import make_portable
from llmshearing.compat.composer import unwrapped
from llmshearing.compat.configs import add_older_names
from llmshearing.export.model_card import CardFacts, Training, write_model_card
from llmshearing.metrics.last_losses import last_losses
from llmshearing.metrics.logger import metrics_of
from llmshearing.models.shapes import shape_of
from llmshearing.models.source_files import derived_from, public_name, read_source_files
from llmshearing.utils.files import give_usual_modes

__all__ = ['ModelCard']


class ModelCard(Callback):
    """Adds ``README.md`` and licence files to the folders of ``hf_checkpointer``.

    Args:
        source (str | None): Folder or hub name of the model that training began with. Default: ``None``, the one that
            this run's model was read from. Licence entries and files are taken from a folder on this machine; of a
            hub's model the card gives the name and says that its licence applies.

    Raises:
        ValueError: At the start, if the run has no ``hf_checkpointer``, its model is of no family that a card can
            describe, or the source's own card cannot be read.
    """

    def __init__(self, source: str | None = None):
        self.source = source
        self._files: dict[str, str] = {}
        self._base_model: str | None = None
        self._losses: dict[str, float] = {}
        self._losses_at: int | None = None

    def init(self, state: State, logger: Logger) -> None:
        savers = [callback for callback in state.callbacks if isinstance(callback, HuggingFaceCheckpointer)]
        if not savers:
            raise ValueError(
                'model_card adds to the folders of hf_checkpointer; add that callback, or remove this one. For pruning '
                'remove it: export_pruned writes a card itself.'
            )
        config = unwrapped(state).model.config
        shape_of(config)
        self.source = source = self.source or config.name_or_path or None
        self._files = read_source_files(source, getattr(state.model.tokenizer, 'name_or_path', None))
        # A card that cannot be read is refused here. A pruned folder names its own source.
        self._base_model = derived_from(self._files) or public_name(source)
        for saver in savers:
            saver.save_additional_contents = self.add_to

    def state_dict(self) -> dict[str, Any]:
        """The source, for exports from checkpoints; a resumed run knows its own, so nothing of it is restored."""
        return {'source': (self.source, self._files)}  # one entry: a sharded checkpoint of before has no others

    def after_load(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value > 0:  # resumed: it may save again before it evaluates
            self._losses, self._losses_at = last_losses(state, metrics_of(logger))

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._losses, self._losses_at = last_losses(state)

    def add_to(self, state: State, logger: Logger, save_dir: str) -> None:
        """Writes card and licence files and completes configs; the hook of ``hf_checkpointer``, called on rank 0."""
        model, now = unwrapped(state).model, state.timestamp
        parameters = sum(parameter.numel() for parameter in model.parameters())
        facts = CardFacts(
            name=f'{Path(self._base_model or "model").name} with {parameters:,} parameters',
            source=self._base_model,
            stage='continued',
            shape=shape_of(model.config),
            parameters=parameters,
            training=Training(now.batch.value, now.token.value, self._losses, losses_at=self._losses_at),
        )
        write_model_card(Path(save_dir), facts, self._files)
        add_older_names(Path(save_dir) / 'config.json')
        make_portable(Path(save_dir))
        give_usual_modes(Path(save_dir))
