"""What ``llmshearing cut`` leaves of a model before any training: by size, by scores, with and without its helpers.

SmolLM2-135M is cut to 80, 60 and 40 % of its parameters, each time to a shape that keeps the hidden size, where there
is nothing to rotate for, and to one that cuts it; heads are kept. Every shape is cut by activations (layers by block
importance), with and without rotation and compensation, by Taylor scores and by magnitude, as ``mask_learning:
one_shot`` would. Losses are means over texts, of passages that were not looked at.

    python benchmarks/cut_quality.py --work runs/demo [--tokens 8192] [--output FILE.json] [--quick]

The folder is that of ``make demo``; what is missing there is made. It takes about twenty minutes of one core.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import statistics
import sys
import warnings
from pathlib import Path
from collections.abc import Mapping, Sequence
from typing import Any

from quality_source import QUICK, make_demo_inputs, make_source
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.cut.settings import CutSettings
from llmshearing.cut.target import cut_shape
from llmshearing.cut.text import Text, token_batches, read_texts
from llmshearing.export.model_folder import open_strictly
from llmshearing.masks.axes import AxisPlan, finalize_masks
from llmshearing.masks.compensation import Compensation
from llmshearing.masks.energies import norm_energies
from llmshearing.masks.in_order import compensate_in_order
from llmshearing.masks.scores import Calibration, method_by_axis, score_units
from llmshearing.masks.state import plan_masks
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.cuttable import Cutter
from llmshearing.models.shapes import ModelShape, shape_of
from llmshearing.rotation.in_memory import rotate_in_memory
from llmshearing.scaling.loss import domain_loss

# Of the parameters, and of the hidden size where that is cut.
SHARES = {0.8: 0.875, 0.6: 0.75, 0.4: 0.625}
QUICK_SHARES = {0.87: 0.875, 0.75: 0.75, 0.65: 0.625}  # the toy is embeddings mostly
AXES = ('layer', 'hidden', 'intermediate')
SEQUENCES = 8
IN_ORDER, AT_ONCE, NOT = 'in order', 'at once', 'not'  # how it is compensated
# name: scores, rotated, compensated
WAYS = {
    'cut': ('activation', True, IN_ORDER),
    'without rotation': ('activation', False, IN_ORDER),
    'compensated all at once, and layers not': ('activation', True, AT_ONCE),
    'without any compensation': ('activation', True, NOT),
    'without rotation and compensation': ('activation', False, NOT),
    'by Taylor, without either': ('taylor', False, NOT),
    'by magnitude, without either': ('magnitude', False, NOT),
}


class Basis:
    """A model in one basis, cut again and again: its weights, scores of its units, and energies."""

    def __init__(self, model: PreTrainedModel, batches: list[dict[str, Tensor]], methods: Sequence[str]):
        self.calibration = Calibration(Cutter(model), batches)
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.scores = {}
        for method in methods:
            by_axis = CutSettings(scores=method).scores_by_axis()
            self.scores[method] = score_units(method_by_axis(by_axis, dict.fromkeys(AXES)), self.calibration)
        self.energies = norm_energies(self.calibration)

    def cut(self, plans: Mapping[str, AxisPlan], scores: str, compensated: str) -> PreTrainedModel:
        """The model, cut from its unchanged weights."""
        cutter = self.calibration.cutter
        cutter.model.load_state_dict(self.weights)
        cutter.norm_energies = self.energies if 'hidden' in plans else None
        masks = finalize_masks(plans, self.scores[scores])
        if compensated == IN_ORDER:
            compensate_in_order(self.calibration, masks)
        elif compensated == AT_ONCE:
            cutter.set_masks({axis: torch.ones_like(mask) for axis, mask in masks.items()})
            watching = Compensation(cutter, masks)
            for batch, _ in self.calibration.passes():
                with torch.no_grad():
                    self.calibration.loss_of(batch)
            watching.stop()
            watching.apply(masks)
        cutter.set_masks(masks)
        return cutter.model


def mean_loss(model: PreTrainedModel, texts: Sequence[Text]) -> float:
    return statistics.fmean(domain_loss(model, text.held_out, SEQUENCES, text.name)['loss'] for text in texts)


def shapes(model: PreTrainedModel, shares: Mapping[float, float]) -> dict[tuple[float, str], ModelShape]:
    """The shapes to cut to, by share of the parameters and by what happens to the hidden size."""
    source, layout = shape_of(model.config), layout_of(model.config)
    whole, found = count_parameters(layout, source).total, {}
    for (share, width), kind in itertools.product(shares.items(), ('kept', 'cut')):
        hidden = source.hidden_size
        if kind == 'cut':
            hidden = round(hidden * width / source.num_attention_heads) * source.num_attention_heads
        budget = {'params': int(share * whole), 'multiple_of': 8, 'tolerance': 0.05, 'hidden_size': hidden}
        found[share, kind] = cut_shape(model.config, budget)
    return found


def measure(
    source: Path, files: Sequence[Path], shares: Mapping[float, float], tokens: int, held_out: int, length: int
) -> dict[str, Any]:
    """Losses of the source and of every cut."""
    model = open_strictly(source).requires_grad_(False)
    texts = read_texts(files, source, model.config.vocab_size, length, tokens, held_out, 17)
    batches = token_batches(texts, SEQUENCES)
    result: dict[str, Any] = {'source': mean_loss(model, texts), 'cuts': []}
    rotated = copy.deepcopy(model)
    rotate_in_memory(rotated, [batch['input_ids'] for batch in batches])
    bases = {False: Basis(model, batches, ['activation', 'taylor', 'magnitude'])}
    bases[True] = Basis(rotated, batches, ['activation'])
    for (share, kind), shape in shapes(model, shares).items():
        plans = plan_masks(model.config, shape)
        parameters = count_parameters(layout_of(model.config), shape).total
        for way, (scores, rotate, compensated) in WAYS.items():
            if kind == 'kept' and way in ('without rotation', 'without rotation and compensation'):
                continue  # the same as with it
            cut = bases[rotate and kind == 'cut'].cut(plans, scores, compensated)
            record = {'share': share, 'hidden': kind, 'way': way, 'loss': mean_loss(cut, texts)}
            result['cuts'].append({**record, 'shape': str(shape), 'parameters': int(parameters)})
            sys.stderr.write(f'{result["cuts"][-1]}\n')
    return result


def table(result: Mapping[str, Any]) -> str:
    """The losses as markdown: a row per way, a column per shape."""
    losses = {(cut['way'], cut['share'], cut['hidden']): cut['loss'] for cut in result['cuts']}
    columns = list(dict.fromkeys((share, hidden) for _, share, hidden in losses))
    head = [f'{share:.0%}, hidden {hidden}' for share, hidden in columns]
    lines = [f'| | {" | ".join(head)} |', f'|{"---|" * (len(head) + 1)}']
    for way in WAYS:
        cells = [f'{losses[way, *column]:.2f}' if (way, *column) in losses else '' for column in columns]
        lines.append(f'| {way} | {" | ".join(cells)} |')
    return f'source: {result["source"]:.2f}\n\n' + '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for text and source, as of the demo')
    parser.add_argument('--tokens', type=int, default=CutSettings.tokens, help='to choose by (default: %(default)s)')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the losses as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    if arguments.quick:
        source, sizes = make_source(arguments.work, QUICK), (QUICK_SHARES, 512, 256, 32)
    else:
        source = make_demo_inputs(arguments.work)
        sizes = (SHARES, arguments.tokens, CutSettings.held_out, CutSettings.seq_len)
    result = measure(source, sorted((arguments.work / 'text').glob('*.jsonl')), *sizes)
    sys.stdout.write(table(result) + '\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
