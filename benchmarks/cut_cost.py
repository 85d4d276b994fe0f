"""What a cut costs before anything is trained again: by axis, by the scores that choose the units, and compensated.

The source of ``quality.py`` is cut to its target along one axis at a time and along all of them, by every method that
scores the axis; then once more with the weights changed so that what stays takes over from what goes (``compensate`` of
``targeted_pruning``). Scores and compensation see training text, losses are of held-out text.

    python benchmarks/cut_cost.py --work runs/quality-smollm --smollm [--rotate | --learn 30] [--sequences 4]
                                  [--scores NAME ...] [--quick] [--output FILE.json]

With ``--smollm`` it takes about twenty minutes of one core. With ``--learn`` the source is rotated to the subspace that
so many steps find, where hidden dimensions go in their order.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any
from collections.abc import Mapping, Sequence

import torch
from quality import rotate
from quality_source import FULL, QUICK, SMOLLM, Sizes, make_source
from torch import Tensor
from transformers import AutoTokenizer

from llmshearing.checkpoints.rotated import has_learned_basis
from llmshearing.data.mds import read_tokens
from llmshearing.masks.compensation import Compensation
from llmshearing.masks.scores import Calibration, score_units, scoring_methods
from llmshearing.masks.axes import AxisPlan, keep_largest, plan_axes
from llmshearing.masks.energies import norm_energies
from llmshearing.masks.in_order import compensate_in_order
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.models.targets import target_shape
from llmshearing.scaling.loss import domain_loss
from llmshearing.scaling.measure import find_domains
from llmshearing.utils.markdown import markdown_table

BEST = {'layer': 'block_importance'}  # and activations for widths, where several axes are cut


def held_out_loss(model: ShearedCausalLM, work: Path, sizes: Sizes) -> float:
    """Mean over the domains under the masks that are set."""
    return statistics.fmean(
        domain_loss(model.model, itertools.islice(read_tokens(folder), sizes.on_the_way), 16, name)['loss']
        for name, folder in find_domains(work / 'data').items()
    )


def training_batches(work: Path, sequences: int) -> list[dict[str, Tensor]]:
    """So many batches of one training sequence of every domain."""
    folders = sorted(path for path in (work / 'data' / 'train').iterdir() if path.is_dir())
    streams = [itertools.islice(read_tokens(folder), sequences) for folder in folders]
    batches = []
    for rows in zip(*streams):
        ids = torch.stack([torch.as_tensor(row).long() for row in rows])
        batches.append({'input_ids': ids, 'labels': ids.clone(), 'attention_mask': torch.ones_like(ids)})
    return batches


class Cuts:
    """Cuts one source again and again."""

    def __init__(self, model: ShearedCausalLM, plans: Mapping[str, AxisPlan], batches: list[dict[str, Tensor]]):
        self.model, self.plans, self.batches = model, plans, batches
        self.weights = {name: value.clone() for name, value in model.model.state_dict().items()}
        self.calibration = Calibration(model.cutter, batches, microbatch_size=1)
        model.cutter.norm_energies = norm_energies(self.calibration)  # gains follow the cut, as in a run
        self.scores: dict[tuple[str, str], Tensor] = {}

    def choose(self, methods: Mapping[str, str]) -> None:
        """Cuts the unchanged source along the axes of ``methods``."""
        self.model.model.load_state_dict(self.weights)
        for axis, method in methods.items():
            if (axis, method) not in self.scores:
                self.scores[axis, method] = score_units({axis: method}, self.calibration)[axis]
        self.masks = {a: keep_largest(self.plans[a], self.scores[a, m]).float() for a, m in methods.items()}
        self.model.cutter.set_masks(self.masks)

    def compensate(self, sequences: int | None = None, at_once: type[Compensation] | None = None) -> None:
        """Changes the weights for the cut that was chosen, by so many sequences of the text or all.

        By default in running order, as ``llmshearing cut`` does; ``at_once`` as units that go one by one are made up
        for, which leaves layers alone.
        """
        cutter, rows = self.model.cutter, torch.cat([batch['input_ids'] for batch in self.batches])[:sequences]
        parts = rows.split(len(self.batches[0]['input_ids']))
        batches = [{'input_ids': part, 'labels': part, 'attention_mask': torch.ones_like(part)} for part in parts]
        if at_once is None:
            compensate_in_order(Calibration(cutter, batches), self.masks)
        else:
            cutter.set_masks({axis: torch.ones_like(mask) for axis, mask in self.masks.items()})
            watching = at_once(cutter, self.masks, rows.numel())
            with torch.no_grad():
                for batch in batches:
                    self.model(batch)
            watching.stop()
            watching.apply(self.masks)
        cutter.set_masks(self.masks)


def measure(work: Path, sizes: Sizes, sequences: int, methods: Sequence[str], source: Path) -> dict[str, Any]:
    """Losses of a source, of every cut by ``methods`` and of the one along all axes."""
    model = ShearedCausalLM(AutoTokenizer.from_pretrained(source), str(source), use_train_metrics=False).eval()
    shape = model.cutter.shape
    cuts = Cuts(model, plan_axes(shape, target_shape(model.config, sizes.target)), training_batches(work, sequences))
    model.cutter.set_masks(None)
    result: dict[str, Any] = {'source': held_out_loss(model, work, sizes), 'cuts': []}
    pairs = [(axis, method) for method in methods for axis in cuts.plans if axis in scoring_methods.get(method).axes]
    ways = [({axis: method}, axis, method) for axis, method in sorted(pairs, key=lambda pair: pair[0])]
    order = {'hidden': 'position'} if has_learned_basis(source) else {}
    best = dict.fromkeys(cuts.plans, 'activation') | BEST | order
    for chosen, axes, by in [*ways, (best, 'all', 'block importance + activation')]:
        cuts.choose(chosen)
        record = {'axes': axes, 'scores': by, 'cut': held_out_loss(model, work, sizes)}
        cuts.compensate(at_once=Compensation)
        record['compensated at once'] = held_out_loss(model, work, sizes)
        cuts.choose(chosen)
        cuts.compensate()
        record['compensated'] = held_out_loss(model, work, sizes)
        result['cuts'].append(record)
        sys.stderr.write(f'{record}\n')
    return result


def table(result: Mapping[str, Any]) -> str:
    """The losses as markdown, with the source's."""
    ways = ('cut', 'compensated at once', 'compensated')
    rows = [[cut['axes'], cut['scores'], *(f'{cut[way]:.2f}' for way in ways)] for cut in result['cuts']]
    losses = markdown_table(['axes cut', 'scores', 'loss', *ways[1:]], rows)
    return f'source: {result["source"]:.2f}\n\n{losses}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for text and source, as of quality.py')
    parser.add_argument('--smollm', action='store_true', help='cut SmolLM2-135M instead of the small source')
    bases = parser.add_mutually_exclusive_group()
    bases.add_argument('--rotate', action='store_true', help='rotate the source first')
    bases.add_argument('--learn', type=int, default=0, metavar='STEPS', help='learn the subspace to rotate to')
    parser.add_argument('--sequences', type=int, default=4, help='of each domain to look at (default: %(default)s)')
    parser.add_argument(
        '--scores',
        nargs='+',
        choices=list(scoring_methods.get_all()),
        default=list(scoring_methods.get_all()),
        help='default: all',
    )
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the losses as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    sizes = QUICK if arguments.quick else SMOLLM if arguments.smollm else FULL
    source = make_source(arguments.work, sizes)
    if arguments.rotate or arguments.learn:
        source = arguments.work / rotate(arguments.work, sizes, arguments.learn)
    result = measure(arguments.work, sizes, arguments.sequences, arguments.scores, source)
    sys.stdout.write(table(result) + '\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
