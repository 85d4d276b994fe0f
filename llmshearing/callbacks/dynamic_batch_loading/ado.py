"""Adaptive Data Optimization: weights by the slope of each domain's loss (arXiv 2410.11820).

After n samples the loss of domain k is taken to follow L_k(n) = eps_k + beta_k * n^-alpha_k, with one n, the samples of
all domains, as in the paper (what is learnt from one domain helps the others). Its learning speed is

    v_k = -dL_k/dn = alpha_k * (L_k(n) - eps_k) / n                                        (learning speed)
    lambda_k ~ h_k^s                                                                       (credit, s = 1/2)
    rho_k ~ prior_k * lambda_k * v_k, at least 0.01 each with prior_k > 0                  (preference)
    w = gamma * rho + (1 - gamma) * mean of all w before                                   (weights, gamma = 0.1)
    h <- gamma * w + (1 - gamma) * h                                                       (history of weights)

with ~ for "normalised to sum 1". Differences from the paper: one update per mixing round, from the evaluation losses
rather than the training losses of every step; and the fit. The paper keeps all losses and minimises a Huber loss in
log space; here the memory must not grow, so eps and beta are solved by least squares (both >= 0) for every alpha of a
grid, which needs sums only, and the best alpha is taken. Weights stay at the prior until ``WARMUP`` rounds have been
measured, and return to it if no domain's loss falls.
"""

from __future__ import annotations

import numpy as np

from llmshearing.callbacks.dynamic_batch_loading.round import Memory, Round

__all__ = ['ado_weights']

ALPHAS = np.linspace(0.05, 0.8, 16)
CREDIT_EXPONENT = 0.5
GAMMA = 0.1
MINIMUM = 0.01
WARMUP = 4


def ado_weights(now: Round, memory: Memory, eta: float = 1.0) -> tuple[np.ndarray, Memory]:
    """One update.

    Args:
        now (Round): Its losses, samples and prior.
        memory (list[float]): What the last update returned; empty at first.
        eta (float): Not looked at.

    Returns:
        tuple[np.ndarray, Memory]: float64 [domains] weights that sum to 1, and the memory, 3 + 2 * alphas + domains *
        (4 + alphas) numbers.
    """
    losses, samples, prior = now.losses, now.samples, now.prior
    k, a = len(losses), len(ALPHAS)
    if not memory:
        memory = [0.0, float(samples), 0.0, *[0.0] * (2 * a), *[0.0] * (k * (2 + a)), *prior, *prior]
    values = np.array(memory)
    count, first, weight_count = values[:3]
    sums, rest = values[3 : 3 + 2 * a].reshape(2, a), values[3 + 2 * a :]
    domain_sums, (history, mean) = rest[: k * (2 + a)].reshape(k, 2 + a), rest[k * (2 + a) :].reshape(2, k)

    # Sums for the fit: x = (n / first)^-alpha for each alpha, y = loss.
    n = samples / first
    x = n**-ALPHAS
    count += 1
    sums += np.stack([x, x * x])
    domain_sums += np.column_stack([losses, losses**2, losses[:, None] * x])

    weights = prior
    if count >= WARMUP:
        speed = np.array([_speed(n, count, sums, row) for row in domain_sums])
        preference = prior * history**CREDIT_EXPONENT * speed
        if preference.any():
            preference = np.maximum(preference / preference.sum(), min(MINIMUM, 0.5 / k)) * (prior > 0)
            weights = GAMMA * preference / preference.sum() + (1 - GAMMA) * mean
            weights = weights / weights.sum()
    history = GAMMA * weights + (1 - GAMMA) * history
    weight_count += 1
    mean = mean + (weights - mean) / (weight_count + 1)
    memory = np.concatenate([[count, first, weight_count], sums.ravel(), domain_sums.ravel(), history, mean]).tolist()
    return weights, memory


def _speed(n: float, count: float, sums: np.ndarray, domain_sums: np.ndarray) -> float:
    """-dL/dn of the best law eps + beta * n^-alpha for one domain, from sums over the rounds.

    Args:
        n (float): Samples now, in units of the first round's end.
        count (float): Rounds measured.
        sums (np.ndarray): float64 [2, alphas], sums of x and x^2.
        domain_sums (np.ndarray): float64 [2 + alphas], sums of y, y^2 and, for each alpha, x * y.
    """
    (sum_x, sum_xx), (sum_y, sum_yy), sum_xy = sums, domain_sums[:2], domain_sums[2:]
    beta = (count * sum_xy - sum_x * sum_y) / (count * sum_xx - sum_x**2)
    eps = (sum_y - beta * sum_x) / count
    beta, eps = np.where(eps < 0, sum_xy / sum_xx, beta), np.maximum(eps, 0)
    beta, eps = np.maximum(beta, 0), np.where(beta < 0, sum_y / count, eps)
    error = sum_yy - 2 * eps * sum_y - 2 * beta * sum_xy + eps**2 * count + 2 * eps * beta * sum_x + beta**2 * sum_xx
    best = int(np.argmin(error))
    return float(ALPHAS[best] * beta[best] * n ** -ALPHAS[best] / n)
