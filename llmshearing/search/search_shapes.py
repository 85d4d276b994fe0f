"""Which shape to ask for: propose, cut, compare, train the best for a few steps, tell.

Everything that config.json, the text and the output's place can tell is told before a weight is read. Each step of a
candidate is kept when it is finished, so a killed search goes on, and several processes on one folder share the work.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from llmshearing.checkpoints.weight_files import weight_files
from llmshearing.compat.torch import usable_device
from llmshearing.config.process import prepare_process
from llmshearing.config.source import read_source
from llmshearing.cut.cut_source import NO_TEXT, cut_source
from llmshearing.cut.plan import PlannedCut, plan_cut
from llmshearing.cut.text import Text, read_texts
from llmshearing.models.counting import count_parameters, layout_of
from llmshearing.models.shapes import DTYPE_BYTES, ModelShape, shape_of
from llmshearing.planning.vocabulary import with_vocabulary
from llmshearing.search.candidates import name_of, propose_shapes, target_of
from llmshearing.search.extrapolation import extrapolate
from llmshearing.search.judge import Judge, speed_of
from llmshearing.search.records import SearchFolder, refuse_other
from llmshearing.search.result import Candidate, SearchResult
from llmshearing.search.settings import SearchSettings
from llmshearing.search.trimmed import trimmed_source, without_vocabulary
from llmshearing.utils.files import dump_json, refuse_unwritable, write_atomically
from llmshearing.utils.numbers import with_unit

__all__ = ['search_shapes']

WAIT = 2.0  # seconds between two looks at what other processes do

Report = Callable[[str], None]


def search_shapes(
    source: str | Path,
    budgets: Sequence[str],
    text: Sequence[str | Path],
    output: str | Path,
    settings: SearchSettings | None = None,
    device: str | None = None,
    report: Report = lambda line: None,
) -> SearchResult:
    """Compares shapes of a budget by the loss of cutting a source to them, and of training the best for a few steps.

    Args:
        source (str | Path): Folder of a Hugging Face model.
        budgets (Sequence[str]): Numbers of parameters, such as ``['80M']``.
        text (Sequence[str | Path]): Files to choose units by, to train on and to measure losses on.
        output (str | Path): Folder for what is found; goes on where a search with the same settings was killed there.
        settings (SearchSettings | None): What else decides the result. Default: all defaults.
        device (str | None): Where to compute. Default: a GPU if there is one.
        report (Callable): Receives a line now and then. Default: nothing.

    Raises:
        ValueError: For a source, budget, text, device or output that is not possible, before any weight is read; for
            weights that do not fit the config.
    """
    settings, output = settings or SearchSettings(), Path(output)
    if not text:
        raise ValueError(NO_TEXT)
    config, budgets = read_source(str(source)), list(dict.fromkeys(budgets))
    vocab_size, settings = without_vocabulary(settings)
    config = config if vocab_size is None else with_vocabulary(config, vocab_size)
    proposed = [(budget, shape) for budget in budgets for shape in propose_shapes(config, budget, settings)]
    plan = _plan_all(source, [shape for _, shape in proposed], settings)
    _check_tokens(settings, plan.length)
    device = usable_device(device)
    refuse_unwritable('--output', output / 'candidates' if output.exists() else output)
    untrimmed = None
    if vocab_size is not None:
        refuse_other(output)
        untrimmed, source = plan, trimmed_source(source, vocab_size, text, settings.cut.text_key, output, report)
        plan = _plan_all(source, [shape for _, shape in proposed], settings)
    texts = _read_texts(text, plan, settings, settings.cut.tokens)
    lessons = _read_lessons(text, plan, settings) if settings.steps else []
    folder = SearchFolder(output, _description(plan, untrimmed, budgets, texts, settings, device))
    work = _Work(plan, texts, lessons, folder, settings, device, report, list(text), untrimmed)
    names = ', '.join(each.name for each in texts)
    report(f'{len(proposed)} candidates, compared on held-out text of {names}; {with_unit(plan.memory, "B")} of memory')
    work.share({name_of(shape): partial(work.measure, shape) for _, shape in proposed})
    proportional = dict(reversed(proposed))  # by budget: the one that is proposed first
    found = [work.candidate(budget, shape, shape == proportional[budget]) for budget, shape in proposed]
    if settings.steps:
        chosen = [each for budget in budgets for each in _to_train(found, budget, settings)]
        report(
            f'training {len(chosen)} of them, {settings.steps} steps of {settings.batch_size * plan.length:,} tokens'
        )
        work.share({work.trained_name(each.shape): partial(work.train, each.shape) for each in chosen})
        found = [work.candidate(each.budget, each.shape, each.proportional) for each in found]
    return _tell(found, budgets, work)


@dataclasses.dataclass
class _Work:
    """What the steps of a search share; the source is read when the first candidate needs it."""

    plan: PlannedCut
    texts: list[Text]
    lessons: list[Text]
    folder: SearchFolder
    settings: SearchSettings
    device: str
    report: Report
    paths: list[str | Path]
    untrimmed: PlannedCut | None = None
    judge: Judge | None = None

    def share(self, records: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
        """Makes the records that are not there, each that no other process is at; then waits for those of others."""
        while missing := [name for name in records if self.folder.read(name) is None]:
            for name in missing:
                with self.folder.claim(name) as mine:
                    if mine and self.folder.read(name) is None:
                        self.folder.write(name, records[name]())
            if any(self.folder.read(name) is None for name in missing):
                time.sleep(WAIT)

    def measure(self, shape: ModelShape) -> dict[str, Any]:
        """Losses of a cut and its speed."""
        if self.judge is None:
            self.judge = Judge(self.plan, self.texts, self.settings.cut, self.device)
        losses = self.judge.losses_at(shape)
        speed = speed_of(self.plan.config, shape, self.plan.computed_in, self.device)
        self.report(f'{name_of(shape)}: {mean(losses.values()):.3f} nats, {speed["generate"]:.1f} tokens/s')
        return {'losses': losses, 'source_losses': self.judge.source_losses, 'speed': speed}

    def train(self, shape: ModelShape) -> dict[str, Any]:
        """Losses while a cut is trained; its folder stays, for whoever wants to go on from it."""
        prepare_process()  # before Composer is imported, which is needed for nothing else here
        from llmshearing.search.training import train_candidate

        self.judge = None  # leaves the memory to the training
        gc.collect()  # and what the training before it has left
        model = self.folder.path / 'models' / name_of(shape)
        if not model.exists():
            settings = dataclasses.replace(self.settings.cut, keep_heads=False, axes=None)
            cut_source(self.plan.folder, target_of(shape), self.paths, model, settings, self.device)
        curve = train_candidate(model, self.lessons, self.settings, self.device)
        self.report(f'{name_of(shape)}: {mean(curve[-1]["losses"].values()):.3f} nats after {curve[-1]["step"]} steps')
        return {'curve': curve}

    def trained_name(self, shape: ModelShape) -> str:
        """Of the record of a training, which other steps leave as it is."""
        training = self.settings
        return f'{name_of(shape)}-{training.steps}x{training.batch_size}-at-{training.learning_rate:g}'

    def candidate(self, budget: str, shape: ModelShape, proportional: bool) -> Candidate:
        """All that is known of a shape."""
        record = self.record(shape)
        curve = (self.folder.read(self.trained_name(shape)) or {'curve': []})['curve']
        parameters = int(count_parameters(layout_of(self.plan.config), shape).total)
        end = None
        if self.settings.tokens is not None and curve:
            source_loss = mean(record['source_losses'].values())
            end = extrapolate(curve, self.plan.source_parameters, parameters, source_loss, self.settings.tokens)
        return Candidate(shape, budget, parameters, record['losses'], record['speed'], proportional, curve, end)

    def record(self, shape: ModelShape) -> dict[str, Any]:
        """What :meth:`measure` found, which is there once it was shared."""
        record = self.folder.read(name_of(shape))
        assert record is not None
        return record


def _plan_all(source: str | Path, shapes: Sequence[ModelShape], settings: SearchSettings) -> PlannedCut:
    """One plan for all candidates: along every axis that any of them cuts, rotated if any wants it."""
    cut = dataclasses.replace(settings.cut, keep_heads=False, axes=None)
    plans = [plan_cut(source, target_of(shape), cut) for shape in shapes]
    weights = DTYPE_BYTES[plans[0].computed_in] * plans[0].source_parameters
    # A copy that they are put back from; and they themselves, which a cut of a large source has in a file.
    held = weights * (1 + bool(plans[0].scratch))
    return dataclasses.replace(
        plans[0],
        axes={axis: rows for plan in plans for axis, rows in plan.axes.items()},
        rotates=any(plan.rotates for plan in plans),
        memory=max(plan.memory for plan in plans) + held,
    )


def _check_tokens(settings: SearchSettings, length: int) -> None:
    """Refuses tokens of the real run that are none beyond those of the steps."""
    seen = settings.steps * settings.batch_size * length
    if settings.tokens is not None and settings.tokens <= seen:
        raise ValueError(
            f'--tokens {settings.tokens:,}: training --steps {settings.steps} sees {seen:,} tokens already; give those '
            'of the real run, which are many more.'
        )


def _to_train(found: Sequence[Candidate], budget: str, settings: SearchSettings) -> list[Candidate]:
    """The best cuts of a budget that are fast enough, and the one with the source's proportions."""
    mine = sorted((each for each in found if each.budget == budget), key=lambda each: each.cut_loss)
    best = [each for each in mine if each.is_allowed(settings.latency)][: settings.train]
    return best + [each for each in mine if each.proportional and each not in best]


def _tell(found: Sequence[Candidate], budgets: list[str], work: _Work) -> SearchResult:
    order = sorted(found, key=lambda each: (budgets.index(each.budget), each.order))
    result = SearchResult(
        order,
        work.record(order[0].shape)['source_losses'],
        latency=work.settings.latency,
        tokens=work.settings.tokens,
        source=shape_of(work.plan.config),
        source_parameters=work.plan.source_parameters,
        bytes_per_token={each.name: each.bytes_per_token for each in work.texts},
        trimmed=_trimming(work),
    )
    write_atomically(work.folder.path / 'loss.svg', result.picture())
    dump_json(work.folder.path / 'result.json', result.as_record(), indent=1, end='')
    return result


def _trimming(work: _Work) -> str:
    """What was trimmed to what, in words; empty where nothing was."""
    if work.untrimmed is None:
        return ''
    after, before = (plan.config.vocab_size for plan in (work.plan, work.untrimmed))
    return f'with {after:,} of the {before:,} tokens of the source: {work.plan.folder}'


def _read_texts(paths: Sequence[str | Path], plan: PlannedCut, settings: SearchSettings, tokens: int) -> list[Text]:
    cut = settings.cut
    vocabulary = plan.config.vocab_size
    return read_texts(paths, plan.folder, vocabulary, plan.length, tokens, cut.held_out, cut.seed, cut.text_key)


def _read_lessons(paths: Sequence[str | Path], plan: PlannedCut, settings: SearchSettings) -> list[Text]:
    """Text for all steps, of the passages that are not held out.

    Raises:
        ValueError: If there is too little of it.
    """
    needed = settings.steps * settings.batch_size
    lessons = _read_texts(paths, plan, settings, needed * plan.length)
    there = sum(len(each.seen) for each in lessons)
    if there < needed:
        raise ValueError(
            f'--steps {settings.steps}: the text has {there:,} sequences of {plan.length} tokens to train on, enough '
            f'for {there // settings.batch_size} steps of --batch-size {settings.batch_size}; give more text or fewer '
            'steps.'
        )
    return lessons


def _description(
    plan: PlannedCut,
    untrimmed: PlannedCut | None,
    budgets: Sequence[str],
    texts: Sequence[Text],
    settings: SearchSettings,
    device: str,
) -> dict[str, Any]:
    """What decides the result, as plain types."""
    seen = hashlib.sha256()
    for each in texts:
        for row in (*each.seen, *each.held_out):
            seen.update(row.tobytes())
    return {
        'source': _identity(plan.folder),
        **({'trimmed_from': _identity(untrimmed.folder)} if untrimmed else {}),
        'budgets': list(budgets),
        'device': device.partition(':')[0],  # by which speeds, and losses after training, differ
        'text': {'names': [each.name for each in texts], 'tokens': seen.hexdigest()},
        **settings.as_record(),
    }


def _identity(source: Path) -> dict[str, Any]:
    """Of a model folder: what another one, or a changed one, differs in."""
    weights = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weight_files(source)]
    return {'config': hashlib.sha256((source / 'config.json').read_bytes()).hexdigest(), 'weights': weights}
