"""Stored teachers against exact divergences: no bias, the same places, and the live loss where all is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import llmshearing.algorithms.distillation.divergence as divergence
from llmshearing.algorithms.distillation.divergence import distillation_loss, teacher_target
from llmshearing.algorithms.distillation.sampled import SampledTokens
from llmshearing.algorithms.distillation.stored import stored_target
from llmshearing.data.stored_teacher import TeacherNote
from llmshearing.data.teacher_column import ColumnFormat, most_tokens
from llmshearing.teacher.sampling import draw, encode

VOCABULARY = 23


def logits(seed, rows=7, vocabulary=VOCABULARY):
    return 3.0 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def stored(teacher, kind, count, temperature=1.0, uniform=None, vocabulary=VOCABULARY):
    """The target that a run makes of what teach stores of these logits [positions, vocabulary]."""
    form = ColumnFormat(kind, count, vocabulary)
    uniform = np.random.default_rng(0).random(len(teacher)) if uniform is None else uniform
    rows = torch.from_numpy(encode(teacher[:, :vocabulary], form, temperature, uniform))
    note = TeacherNote('k', 't', 'h', kind, count, vocabulary, temperature, 0, form.width, {}, 'd', {})
    return stored_target(rows.unsqueeze(0), note)


def loss_and_gradient(student, target, positions=None):
    student = student.clone().requires_grad_()
    loss = distillation_loss(student, target, torch.arange(len(student)) if positions is None else positions)
    (2.5 * loss).backward()
    return loss.detach(), student.grad / 2.5


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_the_mean_over_draws_is_the_exact_divergence_and_gradient(temperature):
    """Within four standard errors of the mean, at every logit, for three draws."""
    student, teacher = logits(0), logits(1)
    exact, exact_gradient = loss_and_gradient(student, teacher_target(teacher, temperature, None, VOCABULARY))
    generator, losses, gradients = np.random.default_rng(1), [], []
    for _ in range(1500):
        loss, gradient = loss_and_gradient(
            student, stored(teacher, 'draws', 3, temperature, generator.random(len(teacher)))
        )
        losses.append(loss)
        gradients.append(gradient)
    found = torch.stack(losses).double()
    error = found.std() / len(found) ** 0.5
    assert 1e-4 < error < 0.1 * exact  # it does vary
    assert (found.mean() - exact).abs() <= 4 * error
    # Of rare tokens a spread cannot be measured: a count is one of two neighbours, the upper with probability rest.
    rest = 3 * torch.softmax(teacher.double() / temperature, -1) % 1
    unit = temperature / 3 / len(teacher)
    error = unit * (rest * (1 - rest) / len(found)).sqrt()
    difference = torch.stack(gradients).double().mean(0) - exact_gradient
    assert (difference.abs() <= 4 * error + 2 * unit / len(found)).all()


def test_draws_have_the_expected_counts_and_are_never_one_away_from_them():
    log_p = torch.log_softmax(logits(2, rows=5), -1)
    counts = torch.zeros(5, VOCABULARY)
    points = np.random.default_rng(0).random((400, 5))
    for uniform in torch.from_numpy(points):
        ids = draw(log_p, uniform, 12)
        once = torch.zeros(5, VOCABULARY).scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float))
        assert ((once - 12 * log_p.exp()).abs() < 1).all() and (ids.diff() >= 0).all()
        counts += once / len(points)
    torch.testing.assert_close(counts, 12 * log_p.exp(), atol=0.1, rtol=0)


def test_tokens_without_probability_are_never_drawn():
    log_p = torch.tensor([[float('-inf'), 0.0, float('-inf')], [-0.6931472, float('-inf'), -0.6931472]])
    for uniform in (0.0, 0.5, 1 - 1e-16):  # the last is rounded to 1 where it is added to a number
        ids = draw(log_p, torch.full((2,), uniform, dtype=torch.float64), 4)
        assert ids[0].tolist() == [1, 1, 1, 1] and set(ids[1].tolist()) == {0, 2}
    head = stored(log_p[:1], 'draws', 4, vocabulary=3).kept.entropy
    assert head.tolist() == [0.0]


def test_many_draws_become_the_live_loss():
    student, teacher = logits(0), logits(1)
    exact, gradient = loss_and_gradient(student, teacher_target(teacher, 2.0, None, VOCABULARY))
    loss, many = loss_and_gradient(student, stored(teacher, 'draws', 200_000, 2.0))
    assert loss.item() == pytest.approx(exact.item(), abs=2e-4)
    torch.testing.assert_close(many, gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize('count', [4, VOCABULARY])
def test_the_stored_top_is_the_live_top(count):
    student, teacher = logits(0), logits(1)
    live = loss_and_gradient(student, teacher_target(teacher, 2.0, count, VOCABULARY))
    kept = loss_and_gradient(student, stored(teacher, 'top_k', count, 2.0))
    assert kept[0].item() == pytest.approx(live[0].item(), rel=1e-3)
    torch.testing.assert_close(kept[1], live[1], atol=1e-3, rtol=1e-3)
    assert kept[1].sum(-1).abs().max() < 1e-6  # two distributions


def test_only_the_given_positions_count_in_chunks_of_any_size(monkeypatch):
    student, teacher = logits(0, vocabulary=VOCABULARY + 4), logits(1)
    positions, target = torch.tensor([0, 2, 5]), stored(teacher, 'draws', 5)
    kept = SampledTokens(target.kept.indices[positions], target.kept.entropy[positions])
    alone = loss_and_gradient(student[positions], divergence.TeacherTarget(1.0, VOCABULARY, kept))
    for elements in (2**24, 3 * VOCABULARY, 1):
        monkeypatch.setattr(divergence, 'CHUNK_ELEMENTS', elements)
        loss, gradient = loss_and_gradient(student, target, positions)
        assert loss.item() == pytest.approx(alone[0].item(), rel=1e-6)
        torch.testing.assert_close(gradient[positions], alone[1])
        assert gradient[[1, 3, 4, 6]].eq(0).all() and gradient[:, VOCABULARY:].eq(0).all()
    assert loss_and_gradient(student, target, torch.empty(0, dtype=torch.long))[0].item() == 0.0


def test_the_gradient_is_that_of_autograd():
    student, target = logits(0), stored(logits(1), 'draws', 6, 0.5)
    wanted = student.double().requires_grad_()
    log_q = torch.log_softmax(wanted / 0.5, -1)
    expected = 0.25 * (-log_q.gather(-1, target.kept.indices).mean(-1) - target.kept.entropy).mean()
    expected.backward()
    loss, gradient = loss_and_gradient(student, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), wanted.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('vocabulary', [65_536, 65_537, 128_256])
@pytest.mark.parametrize('kind', ['draws', 'top_k'])
def test_64_bytes_hold_ids_of_any_vocabulary(kind, vocabulary):
    form = ColumnFormat(kind, most_tokens(kind, vocabulary), vocabulary)
    wider = ColumnFormat(kind, form.count + 1, vocabulary)
    assert form.width <= 64 < wider.width
    ids = torch.randint(vocabulary, (5, form.count))
    ids[0, 0] = vocabulary - 1
    log_probs = None if kind == 'draws' else -torch.randint(4096, (5, form.count)) / 1024.0
    rows = torch.from_numpy(form.pack(torch.arange(5.0), ids, log_probs))
    head, found, values = form.unpack(rows)
    assert torch.equal(found, ids) and head.tolist() == [0, 1, 2, 3, 4]
    assert (values is None) if log_probs is None else torch.equal(values, log_probs)
