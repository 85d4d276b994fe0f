"""Numbers of a run from its tokens: steps, rounds, warm-ups, and how much of its time goes to evaluation.

The rules are those of Sheared LLaMA (arXiv 2310.06694, Table 7), read as shares, so that with the paper's tokens they
give the paper's numbers. Learning rates are the same for all and stand in the template: weights 1e-4 in both stages,
masks and multipliers 1.0, cosine to a tenth.

Evaluation steers the mixture and is bounded here, not by the paper, whose settings spend 0.42 of pruning on it. Counted
in forward passes of a sequence: evaluation of D domains with E sequences each takes D E, a round of R batches of B
sequences 3 R B (forward, and backward as two). So the share is D E / (D E + 3 R B).
"""

from __future__ import annotations

import dataclasses
import math

__all__ = [
    'EVAL_SHARE',
    'FORWARDS_OF_A_STEP',
    'PAPER_TOKENS',
    'TEACHERS',
    'TOKENS_OPTION',
    'Schedule',
    'batch_size',
    'eval_sequences',
    'eval_share',
    'make_schedule',
]

PAPER_TOKENS = {'prune': 3200 * 32 * 4096, 'continue': 51200 * 256 * 4096}
TOKENS_OPTION = {'prune': '--prune-tokens', 'continue': '--tokens'}
BATCH = {'prune': 32, 'continue': 256}  # sequences per step
ROUNDS = {'prune': 64, 'continue': 128}  # updates of the mixture in a run
MASK_WARMUP, RATE_WARMUP = 0.2, 0.1  # shares of pruning
CONTINUE_WARMUP = '0.03dur'
SAVES, LONGEST_UNSAVED = 4, 2000  # checkpoints of a short run; batches between two of a long one
EVAL_SHARE = 0.1  # most of a run's compute that goes to evaluation
LEAST_SEQUENCES, MOST_SEQUENCES = 16, 500  # evaluated per domain; the most is the default of dynamic_batch_loading
FORWARDS_OF_A_STEP = 3
TEACHERS = ('none', 'source', 'stored')  # not there, run beside the student, or in the data by `llmshearing teach`


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a stage is.

    Attributes:
        steps (int): Batches, whole rounds of them.
        batch (int): Sequences per step over all GPUs.
        round_batches (int): Batches between two evaluations.
        mask_warmup (int): Batches in which the target sparsity rises; pruning only.
        rate_warmup (str): Rise of the learning rate, time string.
        save_interval (int): Batches between two checkpoints.
    """

    steps: int
    batch: int
    round_batches: int
    mask_warmup: int
    rate_warmup: str
    save_interval: int


def batch_size(stage: str, gpus: int) -> int:
    """Sequences per step: the paper's, rounded up to as many on each GPU."""
    each = max(gpus, 1)
    return -(-BATCH[stage] // each) * each


def make_schedule(stage: str, tokens: float, max_seq_len: int, gpus: int, domains: int, together: int = 1) -> Schedule:
    """The schedule of a stage: steps = tokens / (batch x sequence length), down to whole rounds.

    Args:
        stage (str): ``'prune'`` or ``'continue'``.
        tokens (float): To train on.
        max_seq_len (int): Tokens per sequence.
        gpus (int): The batch is rounded up to as many sequences on each; 0 is a CPU.
        domains (int): That are evaluated after each round.
        together (int): Sequences of a domain that are evaluated at once, so that fewer cannot be. Default: ``1``.

    Raises:
        ValueError: If that is less than one step, or than two of pruning.
    """
    batch = batch_size(stage, gpus)
    steps = int(tokens // (batch * max_seq_len))
    fewest = 2 if stage == 'prune' else 1  # masks warm up before the last step
    if steps < fewest:
        raise ValueError(
            f'{TOKENS_OPTION[stage]}: {tokens:,.0f} tokens are less than {fewest} step{"s" * (fewest > 1)} of '
            f'{batch} x {max_seq_len} tokens; give at least {fewest * batch * max_seq_len:,}.'
        )
    least = -(-LEAST_SEQUENCES // together) * together
    shortest = math.ceil(least * domains * (1 - EVAL_SHARE) / (EVAL_SHARE * FORWARDS_OF_A_STEP * batch))
    length = min(steps, max(steps // ROUNDS[stage], shortest))
    steps -= steps % length
    return Schedule(
        steps=steps,
        batch=batch,
        round_batches=length,
        mask_warmup=max(1, round(MASK_WARMUP * steps)),
        rate_warmup=f'{round(RATE_WARMUP * steps)}ba' if stage == 'prune' else CONTINUE_WARMUP,
        save_interval=min(LONGEST_UNSAVED, max(1, steps // SAVES)),
    )


def eval_sequences(schedule: Schedule, domains: int) -> int:
    """Most sequences per domain with which evaluation stays within :data:`EVAL_SHARE`; at least one."""
    forwards = FORWARDS_OF_A_STEP * schedule.round_batches * schedule.batch
    return max(1, min(MOST_SEQUENCES, int(EVAL_SHARE / (1 - EVAL_SHARE) * forwards / domains)))


def eval_share(schedule: Schedule, domains: int, sequences: int) -> float:
    """Share of a round's forward and backward passes that is evaluation, 0 to 1."""
    evaluated = domains * sequences
    return evaluated / (evaluated + FORWARDS_OF_A_STEP * schedule.round_batches * schedule.batch)
