"""The loss of every candidate without any training: the source is read, rotated and scored once, and cut many times.

What a candidate loses is measured as ``llmshearing cut`` measures it: rotated where hidden dimensions go, units chosen
by the same scores on the same passages, compensated, the same held-out passages. Compensation changes weights, which
are put back after each candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from llmshearing.compat.torch import DTYPES
from llmshearing.compat.transformers import dtype_argument
from llmshearing.cut.one_shot import Measured, choose_in_one_shot, measure_units
from llmshearing.cut.plan import PlannedCut
from llmshearing.cut.settings import CutSettings
from llmshearing.cut.source import losses_of, open_source
from llmshearing.cut.speed import tokens_per_second
from llmshearing.cut.text import Text, token_batches
from llmshearing.masks.scores import Calibration
from llmshearing.models.cuttable import Cutter
from llmshearing.models.families import family_of
from llmshearing.models.shapes import ModelShape, with_shape
from llmshearing.rotation.in_memory import rotate_in_memory

__all__ = ['Judge', 'speed_of']


class Judge:
    """A source in memory, ready to be cut to one shape after another.

    Args:
        plan (PlannedCut): A cut along all axes that any candidate cuts.
        texts (Sequence[Text]): What units are chosen by and losses measured on.
        settings (CutSettings): How candidates are cut.
        device (str): Where to compute.
    """

    def __init__(self, plan: PlannedCut, texts: list[Text], settings: CutSettings, device: str):
        self.plan, self.texts, self.settings = plan, texts, settings
        model = open_source(plan, device)
        batches = token_batches(texts, plan.sequences_per_pass, device)
        self.source_losses = losses_of(model, texts, plan.sequences_per_pass)
        if plan.rotates:
            rotate_in_memory(model, [batch['input_ids'] for batch in batches])
        self.calibration = Calibration(Cutter(model), batches, seed=settings.seed)
        scores = {axis: plan.scores[axis] for axis in plan.axes}
        self.measured: Measured = measure_units(self.calibration, scores)
        self._weights: dict[str, Tensor] = {
            name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()
        }

    def losses_at(self, shape: ModelShape) -> dict[str, float]:
        """Nats per token on held-out text, by text, of the source cut to a shape."""
        cutter = self.calibration.cutter
        try:
            choose_in_one_shot(self.calibration, shape, self.measured, self.settings.compensate)
            return losses_of(cutter.model, self.texts, self.plan.sequences_per_pass)
        finally:
            cutter.set_masks(None)
            cutter.model.load_state_dict(self._weights)


def speed_of(config: PretrainedConfig, shape: ModelShape, computed_in: str, device: str) -> dict[str, float]:
    """:func:`~llmshearing.cut.speed.tokens_per_second` of a shape; with random weights, which do not matter to it."""
    small = with_shape(config, shape, family_of(config).has_head_dim)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(small, **dtype_argument(DTYPES[computed_in]))
    return tokens_per_second(model.to(device).eval())
