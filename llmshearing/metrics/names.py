"""Names of the metrics that reports and scaling laws read, each written once.

Composer's own names are those of its trainer and of ``speed_monitor`` and ``lr_monitor``; ``mixture/`` is logged by
``dynamic_batch_loading``, ``pruning/`` by ``targeted_pruning``.
"""

from __future__ import annotations

__all__ = [
    'EVAL_LOSS_METRIC',
    'EVAL_SHARE',
    'EVAL_TIME',
    'EXPECTED_SPARSITY',
    'LEARNING_RATE',
    'LOGIT_DIFFERENCE',
    'PRUNING',
    'TOKENS',
    'TOKENS_PER_SECOND',
    'TOTAL_TIME',
    'TRAIN_LOSS',
    'eval_loss_name',
    'label_of',
    'mixture_name',
]

EVAL_LOSS_METRIC = 'LanguageCrossEntropy'
TRAIN_LOSS = 'loss/train/total'
TOKENS = 'time/token'  # trained on when a batch begins
TOTAL_TIME, EVAL_TIME = 'time/total', 'time/val'  # of speed_monitor, in hours unless it has another time_unit
TOKENS_PER_SECOND = 'throughput/tokens_per_sec'
LEARNING_RATE = 'lr-'  # before the optimizer's name
EVAL_SHARE = 'mixture/eval_share'
PRUNING = 'pruning/'  # before an axis and a kind, or a kind of the whole
EXPECTED_SPARSITY = 'pruning/expected_sparsity'
LOGIT_DIFFERENCE = 'export/logit_difference'


def eval_loss_name(label: str) -> str:
    """The evaluation loss of one evaluator, in nats per token."""
    return f'metrics/eval/{label}/{EVAL_LOSS_METRIC}'


def label_of(metric: str) -> str | None:
    """The evaluator whose loss a logged metric is, as in ``eval_loss_name``; None of every other metric."""
    if not metric.startswith('metrics/') or not metric.endswith(f'/{EVAL_LOSS_METRIC}'):
        return None
    return metric.removeprefix('metrics/').removeprefix('eval/').removesuffix(f'/{EVAL_LOSS_METRIC}')


def mixture_name(kind: str, domain: str) -> str:
    """One number of a domain: ``weight``, ``loss``, ``gap``, ``share`` or ``passes``."""
    return f'mixture/{kind}/{domain}'
