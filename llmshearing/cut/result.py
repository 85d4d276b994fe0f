"""What a cut came to, and how it is told."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from llmshearing.cut.plan import PlannedCut
from llmshearing.rotation.in_memory import Rotated
from llmshearing.utils.numbers import with_unit

__all__ = ['CutResult']


@dataclasses.dataclass(frozen=True)
class CutResult:
    """A finished cut.

    Attributes:
        folder (Path): The smaller model.
        plan (PlannedCut): What was to be done.
        losses (dict[str, tuple[float, float]]): Nats per token on held-out text, of source and result, by text.
        bytes_per_token (dict[str, float]): UTF-8 bytes that a token stands for, by text.
        speeds (tuple[dict[str, float], dict[str, float]]): :func:`~llmshearing.cut.speed.tokens_per_second` of source
            and result, in the type that was computed in.
        disk_bytes (tuple[int, int]): Size of the weights' files of source and result.
        rotated (Rotated | None): What the rotation did; None without.
        difference (float | None): Largest difference of a logit between the cut model and what the folder computes;
            None for a large model, whose tensors were compared instead.
    """

    folder: Path
    plan: PlannedCut
    losses: dict[str, tuple[float, float]]
    bytes_per_token: dict[str, float]
    speeds: tuple[dict[str, float], dict[str, float]]
    disk_bytes: tuple[int, int]
    rotated: Rotated | None
    difference: float | None

    def lines(self) -> list[str]:
        """Two tables and what to do next."""
        width = max(len('held-out text'), *map(len, self.losses))
        lines = [f'{"held-out text":{width}}  nats per token        bits per byte']
        for name, (before, after) in self.losses.items():
            bits = [loss / math.log(2) / self.bytes_per_token[name] for loss in (before, after)]
            lines.append(f'{name:{width}}  {before:6.3f} to {after:6.3f}      {bits[0]:6.3f} to {bits[1]:6.3f}')
        before, after = self.speeds
        rows = [
            ('parameters', f'{self.plan.source_parameters:,}', f'{self.plan.parameters:,}'),
            ('weights on disk', *(with_unit(size, 'B') for size in self.disk_bytes)),
            ('tokens/s, reading', f'{before["forward"]:,.0f}', f'{after["forward"]:,.0f}'),
            ('tokens/s, writing', f'{before["generate"]:,.1f}', f'{after["generate"]:,.1f}'),
        ]
        lines += ['', *(f'{name:{width}}  {old:>15} to {new:>15}' for name, old, new in rows)]
        compared = 'every tensor read back and compared with the cut model, bit for bit.'
        if self.difference is not None:
            compared = f'opened and compared, logits differ from the cut model by {self.difference:.2g} at most.'
        return [
            *lines,
            '',
            f'{self.folder}: {compared}',
            'It has not been trained since it was cut. Next: continue its pre-training, `llmshearing train RUN.yaml` '
            f'with model.pretrained_model_name_or_path: {self.folder} (yamls/demo/continue.yaml explains every key).',
        ]
