"""The arms of ``quality.py``: ways to spend the same steps on getting from one source to one shape."""

from __future__ import annotations

import dataclasses
from typing import Any
from collections.abc import Mapping

__all__ = ['GROUPS', 'Arm']

WIDTHS = ('hidden', 'head', 'kv_group', 'intermediate')
DEPTH = {'layer': 'block_importance', 'expert': 'taylor', **dict.fromkeys(WIDTHS, 'taylor')}
ACTIVATION = {'layer': 'block_importance', 'expert': 'taylor', **dict.fromkeys(WIDTHS, 'activation')}
LAGRANGIAN = {'mask_learning': 'lagrangian', 'scores': None}
PROGRESSIVE = {'mask_learning': 'progressive', 'scores': None, 'warmup': '0.8dur'}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to spend the steps.

    Attributes:
        name (str): As in the table.
        pruning (Mapping | None): Options of ``targeted_pruning``, and ``variant`` for one of ``quality_variants``; None
            for arms without a source (random weights).
        prune_share (float): Share of the steps spent pruning; 0 for one-shot ways, 1 for a single run that freezes its
            masks on the way and goes on with the optimizer as it is.
        prune_rate (float): Peak learning rate of the weights while pruning, as a multiple of the one afterwards.
        prune_decay (float): Where that rate ends, as a share of its peak.
        more_steps (float): Total steps as a multiple of the budget.
        mixture (str | None): Update rule of the mixture in continued training.
        references (str): Reference losses of the mixture: the ``'source'``'s, ``'none'`` for zeros, ``'predicted'``
            while it runs, or by a ``'law'`` fitted to four sizes of the source's family.
        eta (float): Step size of the mixture's updates.
        start (str): First mixture of continued training: ``'equal'``, or ``'skewed'``, 8 : 4 : 2 : 1 : 1.
        round_batches (int): Batches between two updates of the mixture.
        distillation (Mapping | None): Options of ``distillation``, from the source, in continued training and in single
            runs.
        microbatch (int | None): Sequences per micro-batch while pruning; None for the whole batch.
        in_stages (bool): Cut to the shapes between first, in runs of 7 % of the steps, each scored anew.
    """

    name: str
    pruning: Mapping[str, Any] | None
    prune_share: float = 0.2
    prune_rate: float = 1.0
    prune_decay: float = 1.0
    more_steps: float = 1.0
    mixture: str | None = None
    references: str = 'source'
    eta: float = 1.0
    start: str = 'equal'
    round_batches: int = 20
    distillation: Mapping[str, Any] | None = None
    microbatch: int | None = None
    in_stages: bool = False

    def total_steps(self, budget: int) -> int:
        """Steps of the arm when the table's budget is ``budget``."""
        return round(budget * self.more_steps)


def _one_shot(scores: Any) -> dict[str, Any]:
    return {'mask_learning': 'one_shot', 'scores': scores, 'freeze_weights': True}


def _one_run(
    name: str,
    share: float,
    mask_learning: str = 'progressive',
    fade: float | None = None,
    scores: Any = DEPTH,
    variant: str = 'as it is',
    compensate: bool = False,
    **settings: Any,
) -> Arm:
    """Masks that are frozen after ``share`` of a single run; learned ones warm up for half of that and settle."""
    warmup = share if mask_learning == 'progressive' else share / 2
    pruning = {
        'mask_learning': mask_learning,
        'variant': variant,
        'scores': scores,
        'warmup': f'{warmup}dur',
        'freeze_masks_after': f'{share}dur',
        'compensate': compensate,
        **({} if fade is None else {'fade': fade}),
    }
    return Arm(name, pruning, 1.0, prune_decay=0.1, **settings)


MASK_OPTIONS: dict[str, dict[str, Any]] = {
    **{f'masks at {rate}': {'learning_rate': rate} for rate in (0.3, 3.0)},
    **{f'multipliers at {rate}': {'multiplier_learning_rate': rate} for rate in (0.3, 3.0)},
    **{f'damping {damping:.0f}': {'multiplier_damping': damping} for damping in (5.0, 80.0)},
    **{f'warm-up {share}': {'warmup': f'{share}dur'} for share in (0.05, 0.5)},
    **{f'frozen after {share}': {'freeze_masks_after': f'{share}dur'} for share in (0.4, 0.7)},
}
ONE_SHOT = {'mask_learning': 'one_shot', 'scores': ACTIVATION}
EXPERT_SCORES = ('reap', 'frequency', 'magnitude', 'random')
TAYLOR, DEPTH_TAYLOR = _one_shot('taylor'), _one_shot(DEPTH)

GROUPS: dict[str, list[Arm]] = {
    'ways': [
        Arm('random initialisation', None, 0),
        Arm('truncation', {**_one_shot('random'), 'variant': 'truncation'}, 0),
        Arm('one-shot random', _one_shot('random'), 0),
        Arm('one-shot magnitude', _one_shot('magnitude'), 0),
        Arm('one-shot activation', _one_shot(ACTIVATION), 0),
        Arm('one-shot taylor', TAYLOR, 0),
        Arm('one-shot depth + taylor', DEPTH_TAYLOR, 0),
        Arm('one-shot depth + taylor, a quarter more steps', DEPTH_TAYLOR, 0, more_steps=1.25),
        Arm('paper (no damping)', {**LAGRANGIAN, 'multiplier_damping': 0.0}),
        Arm('lagrangian', LAGRANGIAN),
        Arm('lagrangian from depth + taylor', {**LAGRANGIAN, 'scores': DEPTH}),
        Arm('progressive', PROGRESSIVE),
        Arm('progressive from depth + taylor', {**PROGRESSIVE, 'scores': DEPTH}),
    ],
    'share': [
        *(
            Arm(f'lagrangian, {share:.0%} of the steps', {**LAGRANGIAN, 'scores': DEPTH}, share)
            for share in (0.05, 0.1, 0.4)
        ),
        *(Arm(f'progressive, {share:.0%} of the steps', PROGRESSIVE, share) for share in (0.05, 0.1, 0.4)),
    ],
    'one run': [
        *(_one_run(f'progressive to {share:.0%}, one run', share) for share in (0.02, 0.05, 0.1, 0.2, 0.5)),
        *(_one_run(f'lagrangian to {share:.0%}, one run', share, 'lagrangian') for share in (0.2, 0.5)),
        Arm('one-shot depth + taylor, one run', {'mask_learning': 'one_shot', 'scores': DEPTH}, 1.0, prune_decay=0.1),
    ],
    'scores of one run': [
        _one_run('progressive to 20%, one run, from activation', 0.2, scores=ACTIVATION),
        _one_run('progressive to 20%, one run, in random order', 0.2, scores=None),
        _one_run('progressive to 20%, one run, from activation, kept', 0.2, scores=ACTIVATION, variant='kept scores'),
        _one_run(
            'progressive to 20%, one run, from activation, gradients count for hidden dimensions',
            0.2,
            scores=ACTIVATION,
            variant='gradients of hidden dimensions',
        ),
        *(
            _one_run(f'progressive to 20%, one run, from activation, {name}', 0.2, scores=ACTIVATION, variant=name)
            for name in ('all layers at once', 'depth first')
        ),
        _one_run('progressive to 5%, one run, from activation', 0.05, scores=ACTIVATION),
        _one_run('lagrangian to 50%, one run, from activation', 0.5, 'lagrangian', scores=ACTIVATION),
        _one_run('progressive to 20%, one run, from activation, compensated', 0.2, scores=ACTIVATION, compensate=True),
        Arm(
            'one-shot activation, one run, compensated, 15% more steps',
            {**ONE_SHOT, 'compensate': True},
            1.0,
            prune_decay=0.1,
            more_steps=1.15,
        ),
        Arm(
            'one-shot activation in three stages, compensated, 4% more steps',
            {**ONE_SHOT, 'compensate': True},
            1.0,
            prune_decay=0.1,
            more_steps=1.04,
            in_stages=True,
        ),
        *(
            Arm(f'one-shot activation, {words} more steps', _one_shot(ACTIVATION), 0, more_steps=share)
            for words, share in (('4%', 1.04), ('15%', 1.15), ('a quarter', 1.25))
        ),
    ],
    'fade': [
        *(
            _one_run(f'progressive to {share:.0%}, one run, fade {fade}', share, fade=fade)
            for share in (0.05, 0.2, 0.5)
            for fade in (0.3, 0.6)
        )
    ],
    'rate': [
        Arm(f'{name}, rate while pruning {rate} of the later one{words}', pruning, prune_rate=rate, prune_decay=decay)
        for name, pruning in (('lagrangian', LAGRANGIAN), ('progressive', PROGRESSIVE))
        for rate, decay, words in ((0.5, 0.1, ' and decaying'), (0.5, 1.0, ''))
    ],
    'masks': [
        *(Arm(f'lagrangian, {name}', {**LAGRANGIAN, **options}) for name, options in MASK_OPTIONS.items()),
        *(Arm(f'progressive, warm-up {share}', {**PROGRESSIVE, 'warmup': f'{share}dur'}) for share in (0.2, 0.5)),
    ],
    'variants': [
        *(
            Arm(f'lagrangian, {name}', {**LAGRANGIAN, 'variant': name})
            for name in ('half noise', 'fading noise', 'hard counts', 'cubic schedule', 'late schedule')
        ),
        Arm('lagrangian, noise per micro-batch', {**LAGRANGIAN, 'variant': 'noise per micro-batch'}, microbatch=1),
        *(
            Arm(f'progressive, {name}', {**PROGRESSIVE, 'variant': name})
            for name in ('cubic schedule', 'late schedule')
        ),
    ],
    'experts': [
        *(Arm(f'experts, {method}', _one_shot({'expert': method}), 0) for method in EXPERT_SCORES),
        *(
            _one_run(f'experts to 20%, one run, from {method}', 0.2, scores={'expert': method})
            for method in EXPERT_SCORES
        ),
        *(
            Arm(f'experts, reap, {words}', {**_one_shot({'expert': 'reap'}), 'variant': f'{words} experts'}, 0)
            for words in ('merged', 'partly merged')
        ),
    ],
    'mixture': [
        *(
            Arm(f'mixture {rule}', DEPTH_TAYLOR, 0, mixture=rule)
            for rule in ('constant', 'sheared', 'sheared_unclipped', 'ado')
        ),
        *(Arm(f'mixture sheared, eta {eta}', DEPTH_TAYLOR, 0, mixture='sheared', eta=eta) for eta in (0.1, 0.3)),
        Arm('mixture sheared, no references', DEPTH_TAYLOR, 0, mixture='sheared', references='none'),
        Arm('mixture sheared, references by a law', DEPTH_TAYLOR, 0, mixture='sheared', references='law'),
        Arm('mixture dro', DEPTH_TAYLOR, 0, mixture='dro'),
        Arm('mixture dro, references predicted', DEPTH_TAYLOR, 0, mixture='dro', references='predicted'),
        Arm('mixture sheared, every 60 batches', DEPTH_TAYLOR, 0, mixture='sheared', round_batches=60),
    ],
    'skewed mixture': [
        Arm('mixture constant, skewed start', DEPTH_TAYLOR, 0, mixture='constant', start='skewed'),
        *(
            Arm(
                f'mixture sheared, skewed start, eta {eta}', DEPTH_TAYLOR, 0, mixture='sheared', eta=eta, start='skewed'
            )
            for eta in (0.1, 0.3, 1.0)
        ),
        Arm(
            'mixture sheared, skewed start, references by a law',
            DEPTH_TAYLOR,
            0,
            mixture='sheared',
            references='law',
            start='skewed',
        ),
        Arm('mixture ado, skewed start', DEPTH_TAYLOR, 0, mixture='ado', start='skewed'),
        Arm('mixture dro, skewed start', DEPTH_TAYLOR, 0, mixture='dro', start='skewed'),
        Arm(
            'mixture dro, skewed start, references predicted',
            DEPTH_TAYLOR,
            0,
            mixture='dro',
            references='predicted',
            start='skewed',
        ),
    ],
    'distillation': [
        Arm('one-shot depth + taylor, distilled', DEPTH_TAYLOR, 0, distillation={}),
        Arm('one-shot depth + taylor, distilled, stored', DEPTH_TAYLOR, 0, distillation={'stored': True}),
        Arm('one-shot depth + taylor, distilled, 0.6 of the steps', DEPTH_TAYLOR, 0, more_steps=0.6, distillation={}),
        _one_run('progressive to 5%, one run, distilled', 0.05, distillation={}),
        _one_run('progressive to 20%, one run, distilled', 0.2, distillation={}),
        *(
            _one_run(
                f'progressive to {share:.0%}, one run, distilled, 0.6 of the steps',
                share,
                more_steps=0.6,
                distillation={},
            )
            for share in (0.05, 0.2)
        ),
        _one_run('lagrangian to 50%, one run, distilled', 0.5, 'lagrangian', distillation={}),
    ],
    # The default way with fewer steps, so that a step that costs more leaves the cost of the run as it is. The live
    # teacher for as many steps as a stored one shows what that would give where storing takes too long.
    'teacher': [
        _one_run(
            f'progressive to 20%, one run, from activation, {words} at {weight}',
            0.2,
            scores=ACTIVATION,
            more_steps=steps,
            distillation={**options, 'weight': weight},
        )
        for words, steps, options in (
            ('stored teacher', 0.94, {'stored': True}),
            ('live teacher', 0.51, {}),
            ('live teacher for 0.94 of the steps', 0.94, {}),
            ('live teacher and its last states', 0.51, {'hidden_weight': 1.0}),
        )
        for weight in (0.5, 1.0)
    ],
}
