"""How many tokens does compensation need, and does a rotation need fewer than a regression?

The source of ``quality.py``, as it is and rotated, loses hidden and intermediate dimensions down to the target's,
chosen by activations. What projections read no longer is then made up for by the regression of ``compensate`` or by an
orthogonal map of what is left of their output (arXiv 2510.07782), either from a few tokens of training text or from
many. Losses are of held-out text, nothing is trained.

    python benchmarks/compensation_tokens.py --work runs/quality-smollm --smollm [--sequences 1 4 16 64]
                                             [--ways regression rotation] [--quick] [--output FILE.json]

With ``--smollm`` it takes about half an hour of one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any
from collections.abc import Mapping, Sequence

import torch
from cut_cost import Cuts, held_out_loss, training_batches
from quality import rotate
from quality_source import DOMAINS, FULL, QUICK, SMOLLM, Sizes, make_source
from torch import Tensor
from transformers import AutoTokenizer

from llmshearing.masks.axes import plan_axes
from llmshearing.masks.compensation import Compensation
from llmshearing.models.sheared_causal_lm import ShearedCausalLM
from llmshearing.models.targets import target_shape
from llmshearing.utils.markdown import markdown_table

AXES = ('hidden', 'intermediate')


class ByRotation(Compensation):
    """The weights that stay, times the orthogonal matrix that brings their output closest to the output of before."""

    def _take_over(self, owner: str, stays: Tensor, goes: Tensor, shares: Tensor) -> None:
        products = self._sums[owner].double()
        for path in (path for path, first in self._owner.items() if first == owner):
            weight = self._model.get_parameter(f'{path}.weight').data
            whole, left = weight.double(), weight[:, stays].double()
            rows, _, columns = torch.linalg.svd(whole @ products[:, stays] @ left.T)
            weight[:, stays] = (rows @ columns @ left).to(weight.dtype)


WAYS = {'regression': Compensation, 'rotation': ByRotation}


def measure(work: Path, sizes: Sizes, name: str, ways: Sequence[str], numbers: Sequence[int]) -> dict[str, Any]:
    """Losses of one source, of the cut, and of the cut compensated in every way from every number of sequences."""
    folder = work / name
    model = ShearedCausalLM(AutoTokenizer.from_pretrained(folder), str(folder), use_train_metrics=False).eval()
    plans = plan_axes(model.cutter.shape, target_shape(model.config, sizes.target))
    cuts = Cuts(model, plans, training_batches(work, math.ceil(max(numbers) / len(DOMAINS))))
    chosen = dict.fromkeys(AXES, 'activation')
    cuts.choose(chosen)
    result: dict[str, Any] = {'source': name, 'cut': held_out_loss(model, work, sizes), 'compensated': []}
    for way, sequences in itertools.product(ways, numbers):
        cuts.choose(chosen)
        cuts.compensate(sequences, WAYS[way])
        tokens = sequences * cuts.batches[0]['input_ids'].shape[1]
        record = {'way': way, 'tokens': tokens, 'loss': held_out_loss(model, work, sizes)}
        result['compensated'].append(record)
        sys.stderr.write(f'{name}: {record}\n')
    return result


def table(results: list[Mapping[str, Any]]) -> str:
    """The losses as markdown: a row per source and way."""
    rows = []
    for result in results:
        for way, records in itertools.groupby(result['compensated'], key=lambda record: record['way']):
            losses = [f'{record["loss"]:.2f}' for record in records]
            rows.append([result['source'], way, f'{result["cut"]:.2f}', *losses])
    tokens = dict.fromkeys(record['tokens'] for record in results[0]['compensated'])
    return markdown_table(['source', 'by', 'as cut', *(f'{number:,} tokens' for number in tokens)], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for text and source, as of quality.py')
    parser.add_argument('--smollm', action='store_true', help='cut SmolLM2-135M instead of the small source')
    parser.add_argument('--sequences', type=int, nargs='+', default=[1, 4, 16, 64], help='default: %(default)s')
    parser.add_argument('--ways', nargs='+', choices=list(WAYS), default=list(WAYS), help='default: both')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the losses as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    sizes = QUICK if arguments.quick else SMOLLM if arguments.smollm else FULL
    make_source(arguments.work, sizes)
    results = [
        measure(arguments.work, sizes, name, arguments.ways, arguments.sequences)
        for name in ('source', rotate(arguments.work, sizes))
    ]
    sys.stdout.write(f'{table(results)}\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
