"""A source folder in, a rotated folder out: reads text, finds the basis, rewrites tensor by tensor, checks.

The stages are a forward pass over some text (moments of the normalised stream), with ``learn`` some steps of the
subspace, the rewriting, which holds one tensor at a time, and the check. Moments and subspace are saved as they grow,
so a killed rotation goes on where it was and gives the same bytes. The folder appears under its name only when the
check has passed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.checkpoints.identity import refuse_other_sources
from llmshearing.checkpoints.rotated import RECORD
from llmshearing.checkpoints.source import WHOLE_UP_TO, check_weights
from llmshearing.compat.torch import DTYPES, usable_device
from llmshearing.export.companions import copy_companions
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.shard_writer import SHARD_BYTES, ModelFolderWriter
from llmshearing.rotation.basis import NO_AXES, completed_basis, energies, fixed_positions, principal_basis
from llmshearing.rotation.check import (
    check_logits,
    check_raise,
    held_out_loss,
    least_common_gain,
    probe_logits,
    set_final_gain,
    try_common_gain,
)
from llmshearing.rotation.corpus import Corpus, read_corpus
from llmshearing.rotation.energy import cut_gain_factors, energy_kept, energy_table, table_widths
from llmshearing.rotation.folder import PICTURE, plot_energy, write_card, write_config
from llmshearing.rotation.folding import common_gain, gain_in_use
from llmshearing.rotation.learning import SubspaceLearner, cut_loss, cut_parameters, folded_parameters
from llmshearing.rotation.moments import StreamMoments, stream_mean_squares, stream_moments
from llmshearing.rotation.paging import paged_model
from llmshearing.rotation.resume import RotationState, settings_key
from llmshearing.rotation.rotate import Rotation, rotated_tensors
from llmshearing.rotation.settings import DEFAULT_LENGTH, RotationSettings
from llmshearing.rotation.source_folder import SourceFolder
from llmshearing.utils.files import dump_json
from llmshearing.utils.paths import refuse_existing
from llmshearing.utils.ranks import from_rank_0, raised_together, refuse_differences, this_rank

__all__ = ['rotate_source', 'step_size']

SAVE_EVERY = 8  # batches or steps between two saves
ENERGY_BATCHES = 8

Report = Callable[[str], None]


def rotate_source(
    source: Path | str,
    data: Path | str,
    output: Path | str,
    settings: RotationSettings,
    overwrite: bool = False,
    device: str | None = None,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Writes ``source`` in a better basis to ``output``; returns what ``rotation.json`` says.

    A collective where there are ranks: all look at the text, each at its share, and rank 0 does the rest.

    Args:
        source (Path): Hugging Face folder with safetensors.
        data (Path): See :mod:`llmshearing.rotation.corpus`.
        output (Path): Folder to write.
        settings (RotationSettings): What decides the result.
        overwrite (bool): Replace an existing output.
        device (str | None): Where to compute; default: a GPU if there is one.
        report (Callable): Receives a line now and then.

    Raises:
        ValueError: For a source that cannot be rotated, settings or data that do not fit it, or a result that does not
            compute what the source does; if ``output`` exists and may not be replaced.
    """
    rank, _ = this_rank()
    report = report if rank == 0 else lambda line: None
    with raised_together():
        work = _open_work(Path(source), Path(data), Path(output), settings, overwrite, device, report)
    refuse_other_sources(str(source))
    refuse_differences({f'text of {data} (its hash)': work.corpus.fingerprint()}, 'every node needs the same text')
    moments = work.look()
    return from_rank_0(lambda: work.finish(moments, Path(output), overwrite))


def _open_work(
    source: Path,
    data: Path,
    output: Path,
    settings: RotationSettings,
    overwrite: bool,
    device: str | None,
    report: Report,
) -> _Work:
    """All that can refuse a rotation before anything is computed; arguments as above."""
    opened, grows = SourceFolder(source), settings.fixed_axes is None
    settings = settings.checked(opened)
    refuse_existing('--output', output, overwrite, (source, data))
    device = usable_device(device)
    vocabulary = opened.config.vocab_size
    wanted = max(settings.tokens, settings.learn * settings.batch_tokens)
    length = settings.seq_len or DEFAULT_LENGTH
    corpus = read_corpus(data, source, vocabulary, length, wanted, settings.held_out, settings.text_key)
    report(
        f'{source}: {opened.parameters:,} parameters, hidden_size {opened.parts.hidden_size}; '
        f'{sum(map(len, corpus.seen)):,} tokens to look at, {sum(map(len, corpus.held_out)):,} held out'
    )
    check_weights(source, opened.config)
    inputs = {'source': opened.fingerprint(), 'data': corpus.fingerprint(), 'device': device.partition(':')[0]}
    key = settings_key({**dataclasses.asdict(settings), **inputs})
    return _Work(opened, settings, corpus, RotationState(output, key), device, report, grows)


@dataclasses.dataclass
class _Work:
    """The stages of one rotation."""

    source: SourceFolder
    settings: RotationSettings
    corpus: Corpus
    state: RotationState
    device: str
    report: Report
    grows: bool  # more axes are fixed than the settings say if that is too few

    @property
    def tied(self) -> bool:
        """Whether the result is tied."""
        return self.source.parts.tied and not self.settings.untie

    def batches(self, held_out: bool = False, limit: int | None = None) -> list[Tensor]:
        """Batches of about the wanted number of tokens, of so many tokens at most."""
        length = len(self.corpus.seen[0])
        batches = self.corpus.batches(max(1, self.settings.batch_tokens // length), held_out)
        if limit is None:
            return batches
        counts = torch.tensor([batch.numel() for batch in batches]).cumsum(0)
        return batches[: int((counts < limit).sum()) + 1]

    def look(self) -> StreamMoments:
        """Moments of the text, of which every rank sees its share; whole on rank 0, which saves them."""
        (rank, ranks), batches = this_rank(), self.batches(limit=self.settings.tokens)
        parts = self.source.parts
        with raised_together():
            model = self._model(self.source)
        moments = StreamMoments.zeros(len(parts.norms), parts.hidden_size)
        done = from_rank_0(lambda: self._load(moments, len(batches)))
        while done < len(batches):
            share = batches[done : done + ranks * SAVE_EVERY]
            done += len(share)
            with raised_together():
                part = stream_moments(model, share[rank::ranks])
            moments.add(part.over_ranks())
            from_rank_0(functools.partial(self._save, moments, done, len(batches)))
        return moments

    def _load(self, moments: StreamMoments, batches: int) -> int:
        """Adds saved moments; returns of how many batches they are."""
        saved = self.state.load('moments')
        if saved is None:
            return 0
        moments.add(StreamMoments(saved['covariance'], saved['squares'], int(saved['tokens'])))
        done = int(saved['batches'])
        self.report(f'going on after {done} of {batches} batches')
        return done

    def _save(self, moments: StreamMoments, done: int, batches: int) -> None:
        counts = {'tokens': torch.tensor(moments.tokens), 'batches': torch.tensor(done)}
        self.state.save('moments', {'covariance': moments.covariance, 'squares': moments.squares, **counts})
        self.report(f'normalised stream: {done} of {batches} batches, {moments.tokens:,} tokens')

    def finish(self, moments: StreamMoments, output: Path, overwrite: bool) -> dict[str, Any]:
        """Everything behind the look at the text; returns the record."""
        rotation, record, kept = self.find_rotation(moments)
        with ModelFolderWriter(output, max_shard_bytes=SHARD_BYTES, overwrite=overwrite) as writer:
            dtype = self.write(writer, rotation)
            self.check(writer.path, dtype, record)
            plot_energy(kept, self.settings.keep, writer.path / PICTURE)
            write_card(self.source.path, output.name, record, kept, writer.path)
            dump_json(writer.path / RECORD, record, indent=1)
            writer.commit()
        self.state.remove()
        self.report(f'written to {output}\n\n{energy_table(kept)}')
        return record

    def find_rotation(self, moments: StreamMoments) -> tuple[Rotation, dict[str, Any], Tensor]:
        """Runs the model: the tied head's gain, the basis. Returns what to do, the record, energy kept."""
        model = self._model(self.source, whole=self.settings.learn > 0)
        fixed, gain = NO_AXES, None
        losses = {'source': held_out_loss(model, self.batches(held_out=True))}
        if self.tied:
            fixed, gain = self._tied_gain(model, moments, losses)
        basis = principal_basis(moments.covariance, fixed)
        learned = None
        if self.settings.learn and self.settings.keep is not None:  # which learning needs
            subspace, when_cut = self._learn(model, basis, self.settings.keep, fixed, gain)
            if when_cut['learned'] < when_cut['principal']:
                basis = completed_basis(subspace, moments.covariance, fixed)
                learned = {'steps': self.settings.learn, 'loss_when_cut': when_cut}
        squares = stream_mean_squares(model, self.batches()[:ENERGY_BATCHES], basis.to(self.device)).cpu()
        kept = energy_kept(squares)
        widths = table_widths(kept.shape[1])
        record = {
            'source': str(self.source.settings.get('_name_or_path') or self.source.path.name),
            'data': self.corpus.where,
            'tokens': moments.tokens,
            'tied': self.tied,
            'untied': self.settings.untie,
            'keep': self.settings.keep,
            'learned': learned,
            'settings': dataclasses.asdict(self.settings),
            'fixed_axes': fixed.tolist(),
            'fixed_axes_at': fixed_positions(basis, fixed).tolist(),
            'loss': losses,
            'energy': (energies(basis, moments.covariance) / moments.covariance.trace().item()).tolist(),
            'energy_kept': {
                'hidden_size': widths,
                'norms': {
                    norm.path: [round(value, 6) for value in kept[number, [w - 1 for w in widths]].tolist()]
                    for number, norm in enumerate(self.source.parts.norms)
                },
            },
        }
        return Rotation(basis, gain), record, kept

    def _model(self, folder: SourceFolder, whole: bool = False) -> PreTrainedModel:
        """A model to look at; a small one in float32, others from their files unless the ``whole`` is needed."""
        small = folder.parameters <= WHOLE_UP_TO
        dtype = torch.float32 if small else folder.dtype
        if small or whole:
            return open_strictly(folder.path, dtype, folder.config).to(self.device).requires_grad_(False)
        return paged_model(folder, dtype, self.device)

    def _tied_gain(self, model: PreTrainedModel, moments: StreamMoments, losses: dict) -> tuple[Tensor, Tensor]:
        """Fixed axes and gain of the tied final norm; measures what the common gain costs."""
        squares, count, batches = moments.mean_squares()[-1], self.settings.fixed_axes or 0, self.batches(held_out=True)
        own = gain_in_use(self.source.parts.final_norm, self.source.get)
        if self.grows:
            fixed, gain, loss = least_common_gain(model, own, squares, count, batches, losses['source'])
        else:
            fixed, gain, loss = try_common_gain(model, own, squares, count, batches)
        losses['common_gain'] = loss
        self.report(
            f'tied LM head: {len(fixed)} fixed axes, the common gain of the others costs '
            f'{loss - losses["source"]:+.4f} nats'
        )
        check_raise(losses['source'], loss, len(fixed), len(squares))
        if len(fixed) == len(squares):
            instead = '--untie' if self.grows else 'fewer --fixed-axes, or --untie,'
            self.report(f'all axes are fixed: nothing is rotated, dimensions only change places; {instead} rotates it')
        return fixed, gain

    def _learn(
        self, model: PreTrainedModel, basis: Tensor, keep: int, fixed: Tensor, gain: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """The learned subspace, and held-out losses of the model cut to it and to as many principal directions."""
        parts, steps = self.source.parts, self.settings.learn
        batches = self.batches()
        squares = stream_mean_squares(model, batches[:ENERGY_BATCHES], basis.to(self.device))
        factors = cut_gain_factors(squares, keep).float()
        folded = folded_parameters(model, gain)
        saved = self.state.load('subspace')
        if saved is None:
            learner = SubspaceLearner.start(basis.to(self.device), keep, fixed)
        else:
            learner = SubspaceLearner.from_tensors(saved, self.device)
            self.report(f'going on after {learner.steps} of {steps} steps of the subspace')
        losses = []

        def loss_of(subspace: Tensor, ids: Tensor) -> Tensor:
            return cut_loss(model, cut_parameters(parts, folded, subspace, factors), ids.to(self.device))

        while learner.steps < steps:
            loss_on = functools.partial(loss_of, ids=batches[learner.steps % len(batches)])
            losses.append(learner.step(loss_on, step_size(learner.steps, steps)))
            if learner.steps % SAVE_EVERY == 0 or learner.steps == steps:
                self.state.save('subspace', dict(learner.tensors()))
                self.report(
                    f'subspace: {learner.steps} of {steps} steps, loss of the cut model '
                    f'{sum(losses[-SAVE_EVERY:]) / len(losses[-SAVE_EVERY:]):.3f}'
                )
        subspaces = {'principal': basis[:, :keep].to(self.device), 'learned': learner.subspace()}
        held_out = self.batches(held_out=True)
        with torch.no_grad():
            when_cut = {
                name: statistics.fmean(loss_of(subspace.float(), ids).item() for ids in held_out)
                for name, subspace in subspaces.items()
            }
        better = when_cut['learned'] < when_cut['principal']
        self.report(
            f'held-out loss of the cut model: {when_cut["learned"]:.3f} in the learned subspace, '
            f'{when_cut["principal"]:.3f} in principal directions, which are {"not " if better else ""}kept'
        )
        return subspaces['learned'], when_cut

    def write(self, writer: ModelFolderWriter, rotation: Rotation) -> torch.dtype:
        """Rewrites every tensor and puts the source's other files beside them."""
        source = self.source
        stored = source.dtype if self.settings.dtype is None else DTYPES[self.settings.dtype]
        names = [*source.names, f'{source.parts.head}.weight'] if self.settings.untie else source.names
        chosen = None if self.settings.dtype is None else stored
        rotated = rotated_tensors(source.parts, rotation, names, source.get, chosen, self.device)
        for number, (name, tensor) in enumerate(rotated, 1):
            writer.add(name, tensor)
            if number % 100 == 0 or number == len(names):
                self.report(f'rotated {number} of {len(names)} tensors')
        writer.finish_tensors()
        write_config(source.settings, self.tied, stored, writer.path)
        copy_companions(source.path, writer.path)
        return stored

    def check(self, folder: Path, stored: torch.dtype, record: dict[str, Any]) -> None:
        """Compares the written folder with the source; of large models, no more than a tensor is in memory."""
        batches = self.batches(held_out=True)
        model = paged_model(self.source, torch.float64, self.device)
        if self.tied:  # from the source again, so that a wrong gain in the rotation is seen
            fixed = torch.tensor(record['fixed_axes'], dtype=torch.int64)
            set_final_gain(model, common_gain(gain_in_use(self.source.parts.final_norm, self.source.get), fixed))
        expected = probe_logits(model, batches)
        written = SourceFolder(folder)
        model = paged_model(written, torch.float64, self.device)
        difference = check_logits(probe_logits(model, batches), expected, stored, str(folder))
        record['checked_in'] = 'float64'
        record['largest_logit_difference'] = difference
        record['loss']['rotated'] = held_out_loss(self._model(written), batches)
        self.report(
            f'checked in {record["checked_in"]}: logits differ by {difference:.2g} at most; held-out loss '
            f'{record["loss"]["source"]:.4f} before, {record["loss"]["rotated"]:.4f} after'
        )


def step_size(step: int, steps: int) -> float:
    """Fraction of a full step: a cosine down to a tenth."""
    return 0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2
