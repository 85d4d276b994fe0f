"""What cutting hidden dimensions costs in other bases of the residual stream, before anything is trained again.

The source of ``quality.py`` is cut along hidden alone, to its target's hidden_size, in coordinates (those with most
energy), in principal directions, with the head tied and some axes fixed, with and without gains corrected for the
smaller norm, and in a learned subspace. Bases see training text, losses are of held-out text of the same domains.

    python benchmarks/rotation_cost.py --work runs/quality-smollm --smollm [--learn 30] [--bfloat16]
                                       [--sequences 8] [--output FILE.json]
    python benchmarks/rotation_cost.py --work /tmp/quick --quick

With ``--smollm`` it takes about half an hour of two cores; with ``--bfloat16``, on processors that multiply it, a third
of that, and losses are within 0.01.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from quality_source import FULL, QUICK, SMOLLM, Sizes, make_source
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmshearing.data.mds import read_tokens
from llmshearing.rotation.basis import NO_AXES, by_energy, fixed_positions, principal_basis
from llmshearing.rotation.energy import cut_gain_factors, energy_kept
from llmshearing.rotation.folding import common_gain, odd_axes
from llmshearing.rotation.learning import SubspaceLearner, cut_loss, cut_parameters, folded_parameters
from llmshearing.rotation.moments import stream_mean_squares, stream_moments
from llmshearing.rotation.rotate_source import step_size
from llmshearing.rotation.stream import stream_parts
from llmshearing.scaling.measure import find_domains
from llmshearing.utils.markdown import markdown_table

ENERGY_BATCHES = 4
FIXED = 64


def training_batch(work: Path, number: int) -> Tensor:
    """One training sequence of every domain, [domains, tokens]; begins again where a domain ends."""
    folders = sorted(path for path in (work / 'data' / 'train').iterdir() if path.is_dir())
    rows = [_rows(folder) for folder in folders]
    return torch.stack([own[number % len(own)] for own in rows])


_ROWS: dict[Path, list[Tensor]] = {}


def _rows(folder: Path) -> list[Tensor]:
    if folder not in _ROWS:
        _ROWS[folder] = [torch.from_numpy(row) for row in itertools.islice(read_tokens(folder), 400)]
    return _ROWS[folder]


class Cuts:
    """One source, cut in one basis after the other.

    Args:
        work (Path): Folder of ``quality.py``.
        sizes (Sizes): Its sizes.
        batches (int): Batches of one sequence of every domain to find bases on.
        half (bool): Compute losses and gradients in bfloat16; moments and bases are found in float32 and float64.
        sequences (int | None): Held out, of every domain; default: as many as in ``quality.py``.
    """

    def __init__(self, work: Path, sizes: Sizes, batches: int, half: bool, sequences: int | None):
        self.work, self.dtype = work, torch.bfloat16 if half else torch.float32
        self.sequences = sequences or sizes.on_the_way
        source = make_source(work, sizes)
        self.model = AutoModelForCausalLM.from_pretrained(source, attn_implementation='sdpa').eval()
        self.model.requires_grad_(False)
        self.parts = stream_parts(self.model.config)
        self.kept = sizes.target['hidden_size']
        self.seen = [training_batch(work, number) for number in range(batches)]
        self.moments = stream_moments(self.model, self.seen)
        self.folded: dict[bool, dict[str, Tensor]] = {}
        final = self.parts.final_norm
        own = self.model.get_submodule(final.path).weight.double() + final.offset
        self.fixed = odd_axes(own, self.moments.mean_squares()[-1], min(FIXED, self.parts.hidden_size // 4))
        self.gain = common_gain(own, self.fixed)
        for tied in (False, True):
            folded = folded_parameters(self.model, self.gain if tied else None)
            self.folded[tied] = {name: tensor.to(self.dtype) for name, tensor in folded.items()}
        for parameter in self.model.parameters():  # not model.to, which rounds the rotary frequencies as well
            parameter.data = parameter.data.to(self.dtype)

    def loss(self, parameters: dict[str, Tensor]) -> float:
        """Mean over the domains of held-out text."""
        losses = []
        with torch.no_grad():
            for folder in find_domains(self.work / 'data').values():
                rows = [torch.from_numpy(r) for r in itertools.islice(read_tokens(folder), self.sequences)]
                losses.append(
                    statistics.fmean(
                        cut_loss(self.model, parameters, torch.stack(rows[start : start + 4])).item()
                        for start in range(0, len(rows), 4)
                    )
                )
        return statistics.fmean(losses)

    def source_losses(self) -> dict[str, float]:
        """Of the source as it is, and with the common gain in its final norm."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        final = self.parts.final_norm
        common = {**own, f'{final.path}.weight': (self.gain - final.offset).to(self.dtype)}
        return {'source': self.loss(own), 'common gain': self.loss(common)}

    def cut(self, basis: Tensor, tied: bool, corrected: bool = True) -> dict[str, Any]:
        """Loss of the leading directions."""
        squares = stream_mean_squares(self.model, self.seen[:ENERGY_BATCHES], basis)
        factors = cut_gain_factors(squares, self.kept).float() if corrected else torch.ones(len(self.parts.norms))
        with torch.no_grad():
            parameters = cut_parameters(self.parts, self.folded[tied], basis[:, : self.kept].float(), factors)
            return {'loss': self.loss(parameters), 'energy_kept': energy_kept(squares)[:, self.kept - 1].mean().item()}

    def learn(self, basis: Tensor, tied: bool, steps: int) -> Iterator[dict[str, Any]]:
        """Losses of a learned subspace on the way and at the end."""
        squares = stream_mean_squares(self.model, self.seen[:ENERGY_BATCHES], basis)
        factors = cut_gain_factors(squares, self.kept).float()
        learner = SubspaceLearner.start(basis, self.kept, self.fixed if tied else NO_AXES)
        seen = []

        def loss_of(subspace: Tensor, ids: Tensor) -> Tensor:
            return cut_loss(self.model, cut_parameters(self.parts, self.folded[tied], subspace, factors), ids)

        for step in range(steps):
            ids = training_batch(self.work, step)
            seen.append(learner.step(lambda u, ids=ids: loss_of(u, ids), step_size(step, steps)))
            if step + 1 in {steps // 3, 2 * steps // 3, steps}:
                with torch.no_grad():
                    parameters = cut_parameters(self.parts, self.folded[tied], learner.subspace().float(), factors)
                    yield {'steps': step + 1, 'loss': self.loss(parameters), 'last_seen': statistics.fmean(seen[-10:])}


def measure(cuts: Cuts, steps: int) -> Iterator[dict[str, Any]]:
    """Every basis in turn."""
    for name, loss in cuts.source_losses().items():
        yield {'basis': name, 'loss': loss}
    covariance = cuts.moments.covariance
    axes = by_energy(torch.eye(cuts.parts.hidden_size, dtype=torch.float64), covariance)
    principal, tied = principal_basis(covariance), principal_basis(covariance, cuts.fixed)
    inside = int((fixed_positions(tied, cuts.fixed) < cuts.kept).sum())
    yield {'basis': 'coordinates by energy', **cuts.cut(axes, tied=False)}
    yield {'basis': 'principal, gains as they are', **cuts.cut(principal, tied=False, corrected=False)}
    yield {'basis': 'principal', **cuts.cut(principal, tied=False)}
    yield {'basis': f'principal, tied, {len(cuts.fixed)} axes fixed ({inside} kept)', **cuts.cut(tied, tied=True)}
    for basis, is_tied, name in ((tied, True, 'learned, tied'), (principal, False, 'learned')):
        for record in cuts.learn(basis, is_tied, steps) if steps else ():
            yield {'basis': f'{name}, {record["steps"]} steps', **record}


def table(records: list[dict[str, Any]]) -> str:
    """The losses as markdown."""
    rows = []
    for record in records:
        energy = f'{100 * record["energy_kept"]:.1f} %' if 'energy_kept' in record else ''
        rows.append([record['basis'], f'{record["loss"]:.3f}', energy])
    return markdown_table(['basis', 'loss', 'energy kept'], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for text and source, as of quality.py')
    parser.add_argument('--smollm', action='store_true', help='cut SmolLM2-135M instead of the small source')
    parser.add_argument('--batches', type=int, default=16, help='to find bases on (default: %(default)s)')
    parser.add_argument('--learn', type=int, default=30, metavar='STEPS', help='default: %(default)s')
    parser.add_argument('--bfloat16', action='store_true', help='compute losses and gradients in bfloat16')
    parser.add_argument('--sequences', type=int, help='held out, of every domain (default: as in quality.py)')
    parser.add_argument('--quick', action='store_true', help='toy sizes, to see that it runs')
    parser.add_argument('--output', type=Path, help='write the losses as JSON')
    arguments = parser.parse_args()
    warnings.filterwarnings('ignore')
    sizes = QUICK if arguments.quick else SMOLLM if arguments.smollm else FULL
    began, records = time.monotonic(), []
    batches = 2 if arguments.quick else arguments.batches
    cuts = Cuts(arguments.work, sizes, batches, arguments.bfloat16, arguments.sequences)
    for record in measure(cuts, min(arguments.learn, 3) if arguments.quick else arguments.learn):
        records.append(record)
        sys.stderr.write(f'{time.monotonic() - began:6.0f} s {record}\n')
    sys.stdout.write(table(records) + '\n')
    if arguments.output:
        arguments.output.write_text(json.dumps(records, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
