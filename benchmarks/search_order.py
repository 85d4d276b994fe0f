"""Does the order of cuts foretell that after training, and is the chosen shape better than the source's proportions?

``llmshearing search`` proposes shapes of SmolLM2-135M with 80M parameters, and here all of them are cut and trained.
The best after training and the one with the source's proportions are then cut and trained again from other passages,
once per further seed. The text is one file of four kinds of documents, mixed.

    python benchmarks/search_order.py --work runs/search-order [--candidates 12] [--seeds 17 18 19]
                                      [--quick] [--output FILE.json]

A candidate takes about eight minutes of one core. Several processes may share a work folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import warnings
from pathlib import Path
from collections.abc import Sequence
from typing import Any

from quality_source import QUICK, make_demo_inputs, make_source

from llmshearing.cut.settings import CutSettings
from llmshearing.search.candidates import name_of, target_of
from llmshearing.search.result import Candidate
from llmshearing.search.search_shapes import search_shapes
from llmshearing.search.settings import SearchSettings
from llmshearing.utils.files import write_atomically
from llmshearing.utils.markdown import markdown_table

BUDGET, QUICK_BUDGET = '80M', '45K'
SEARCH, CUT = {'steps': 100, 'batch_size': 2, 'learning_rate': 1e-4}, {'seq_len': 128}
QUICK_SEARCH = {**SEARCH, 'steps': 4, 'tolerance': 0.1}
QUICK_CUT = {'seq_len': 32, 'tokens': 512, 'held_out': 256}


def mix_texts(folder: Path, output: Path) -> Path:
    """Writes the documents of all files of a folder to one, in random order."""
    if not output.exists():
        documents = [line for file in sorted(folder.glob('*.jsonl')) for line in file.open(encoding='utf-8')]
        random.Random(0).shuffle(documents)
        write_atomically(output, ''.join(documents))
    return output


def measure(
    source: Path, budget: str, text: Path, work: Path, candidates: int, seeds: Sequence[int], options: dict, cut: dict
) -> dict[str, Any]:
    """Losses of every candidate with the first seed; of the best and the proportional one with every seed."""

    def search(name: str, seed: int, count: int, pins: dict[str, int]) -> list[Candidate]:
        settings = SearchSettings(
            candidates=count, train=count, pins=pins, cut=CutSettings(seed=seed, **cut), **options
        )
        result = search_shapes(
            source,
            [budget],
            [text],
            work / f'{name}-{seed}',
            settings,
            report=lambda line: print(line, file=sys.stderr),
        )
        agreements.append(result.order_agreement(budget))
        return result.candidates

    agreements: list[tuple[float, float, float] | None] = []
    found = search('all', seeds[0], candidates, {})
    shapes = {'best': found[0].shape, 'proportional': next(each.shape for each in found if each.proportional)}
    again = {name: {seeds[0]: _loss_of(found, shape)} for name, shape in shapes.items()}
    for seed in seeds[1:]:
        for name, shape in shapes.items():
            again[name][seed] = _loss_of(search(name_of(shape), seed, 1, target_of(shape)), shape)
    rows = [
        {'shape': name_of(each.shape), 'cut': each.cut_loss, 'trained': each.trained_loss, **target_of(each.shape)}
        for each in found
    ]
    return {'candidates': rows, 'correlation': agreements[0], 'seeds': again}


def _loss_of(candidates: Sequence[Candidate], shape: object) -> float:
    return next(each.trained_loss for each in candidates if each.shape == shape)


def table(result: dict[str, Any]) -> str:
    """The candidates, what their order says, and the two shapes by seed, as markdown."""
    rows = [[each['shape'], f'{each["cut"]:.3f}', f'{each["trained"]:.3f}'] for each in result['candidates']]
    seeds = [[name, *(f'{loss:.3f}' for loss in losses.values())] for name, losses in result['seeds'].items()]
    columns = [f'seed {seed}' for seed in result['seeds']['best']]
    return '\n\n'.join(
        [
            markdown_table(['candidate', 'cut', 'trained'], rows),
            f'rank correlation and its 90 % interval: {result["correlation"]}',
            markdown_table(['shape', *columns], seeds),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for source, text and searches')
    parser.add_argument('--candidates', type=int, default=12, help='default: %(default)s')
    parser.add_argument('--seeds', type=int, nargs='+', default=[17, 18, 19], help='default: %(default)s')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the losses as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    if arguments.quick:
        source, budget, settings = make_source(arguments.work, QUICK), QUICK_BUDGET, (QUICK_SEARCH, QUICK_CUT)
    else:
        source, budget, settings = make_demo_inputs(arguments.work), BUDGET, (SEARCH, CUT)
    text = mix_texts(arguments.work / 'text', arguments.work / 'mixed.jsonl')
    result = measure(source, budget, text, arguments.work, arguments.candidates, arguments.seeds, *settings)
    sys.stdout.write(f'{table(result)}\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
