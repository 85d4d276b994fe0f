"""Closed forms of the rules: steps, rounds, warm-ups, the share of evaluation, the micro-batch."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from llmshearing.planning.memory import TrainingSetup, estimate_memory
from llmshearing.recipes import hardware as hardware_module
from llmshearing.recipes.hardware import USABLE, Hardware, place_stage
from llmshearing.recipes.request import Run
from llmshearing.recipes.rules import EVAL_SHARE, PAPER_TOKENS, Schedule, eval_sequences, eval_share, make_schedule

SMALL = LlamaConfig(
    vocab_size=3200, hidden_size=512, intermediate_size=1376, num_hidden_layers=2, num_attention_heads=8
)


def test_the_papers_tokens_give_the_papers_numbers():
    assert make_schedule('prune', PAPER_TOKENS['prune'], 4096, 8, 7) == Schedule(3200, 32, 50, 640, '320ba', 800)
    proceed = make_schedule('continue', PAPER_TOKENS['continue'], 4096, 16, 7)
    assert (proceed.steps, proceed.batch, proceed.round_batches) == (51200, 256, 400)
    assert (proceed.rate_warmup, proceed.save_interval) == ('0.03dur', 2000)


@pytest.mark.parametrize(
    'parameters, size',
    [
        (1345423360, '1.3B'),
        (999_960_000, '1.0B'),
        (999_400_000, '999M'),
        (53_500_000, '54M'),
        (7_100, '7.1K'),
        (64, '64'),
    ],
)
def test_a_target_is_named_by_its_size(parameters, size):
    assert Run.size.fget(SimpleNamespace(parameters=parameters)) == size


@pytest.mark.parametrize('tokens', [1e6, 1.7e7, 4.2e8, 1e10])
@pytest.mark.parametrize('domains', [1, 4, 30])
@pytest.mark.parametrize('stage', ['prune', 'continue'])
def test_steps_are_whole_rounds_of_the_tokens(tokens, domains, stage):
    length = 2048 if tokens > 2e6 else 128
    schedule = make_schedule(stage, tokens, length, 8, domains)
    whole = int(tokens // (schedule.batch * length))
    assert schedule.steps % schedule.round_batches == 0
    assert 0 <= whole - schedule.steps < schedule.round_batches <= whole


def test_the_batch_is_whole_sequences_on_each_gpu():
    assert [make_schedule('prune', 1e9, 4096, gpus, 7).batch for gpus in (0, 1, 6, 8, 64)] == [32, 32, 36, 32, 64]


@pytest.mark.parametrize('stage, option', [('prune', '--prune-tokens'), ('continue', '--tokens')])
def test_too_few_steps_are_refused(stage, option):
    fewest, batch = {'prune': (2, 32), 'continue': (1, 256)}[stage]
    tokens = fewest * batch * 128
    assert make_schedule(stage, tokens, 128, 1, 1).steps == fewest
    with pytest.raises(ValueError, match=rf'^{option}: .* less than {fewest} steps? of {batch} x .* least {tokens:,}'):
        make_schedule(stage, tokens - 1, 128, 1, 1)


def test_the_share_of_evaluation_is_counted_in_forward_passes():
    paper = make_schedule('prune', PAPER_TOKENS['prune'], 4096, 8, 7)
    assert eval_share(paper, 7, 500) == pytest.approx(3500 / (3500 + 3 * 50 * 32))  # 0.42
    assert eval_sequences(paper, 7) == 76  # 4800 / 9 / 7
    assert eval_share(paper, 7, 76) <= EVAL_SHARE < eval_share(paper, 7, 77)
    assert eval_sequences(make_schedule('continue', PAPER_TOKENS['continue'], 4096, 16, 7), 7) == 500


@pytest.mark.parametrize('domains', [1, 7, 40])
def test_short_runs_make_longer_rounds_instead_of_more_evaluation(domains):
    schedule = make_schedule('prune', 2000 * 32 * 64, 64, 1, domains)
    sequences = eval_sequences(schedule, domains)
    assert sequences >= 16 and eval_share(schedule, domains, sequences) <= EVAL_SHARE


@pytest.mark.parametrize('together', [1, 16, 64, 100])
def test_rounds_are_long_enough_for_the_sequences_that_are_evaluated_at_once(together):
    schedule = make_schedule('prune', 2000 * 32 * 64, 64, 8, 7, together)
    sequences = max(eval_sequences(schedule, 7) // together, 1) * together
    assert eval_share(schedule, 7, sequences) <= EVAL_SHARE


@pytest.fixture
def gib(monkeypatch):
    """In the place of the estimate: 8 GiB that are divided, as many of a teacher, 2 (checkpointed: 0.5) a sequence."""

    def estimate(config, setup, masked_axes, teacher):
        divided = (8 if teacher is None else 16) / (setup.gpus if setup.sharding == 'fsdp2' else 1)
        each = 0.5 if setup.activation_checkpointing else 2
        return SimpleNamespace(total=int((divided + each * setup.micro_batch) * 2**30))

    monkeypatch.setattr(hardware_module, 'estimate_memory', estimate)


@pytest.mark.parametrize(
    'gpus, usable, micro_batch, checkpointing',
    [(4, 18, 8, False), (4, 17.9, 4, False), (4, 4, 1, False), (4, 3.9, 2, True), (4, 2.5, 1, True), (1, 12, 2, False)],
)
def test_the_micro_batch_is_the_largest_that_fits(gib, gpus, usable, micro_batch, checkpointing):
    place = place_stage('prune', SMALL, Hardware(gpus, 1.0001 * usable / USABLE), 32, 512)
    assert (place.micro_batch, place.checkpointing) == (micro_batch, checkpointing)


@pytest.mark.parametrize(
    'gpus, usable, remedy',
    [(4, 2.4, '--gpu-memory 3, or --gpus 8'), (1, 8, '--gpu-memory 12, or --gpus 2'), (4, 0.4, '--gpu-memory 3 would')],
)
def test_what_would_do_is_said(gib, gpus, usable, remedy):
    with pytest.raises(ValueError, match=remedy):
        place_stage('prune', SMALL, Hardware(gpus, usable / USABLE), 32, 512)


def test_a_teacher_takes_room(gib):
    hardware = Hardware(4, 1.0001 * 18 / USABLE)
    places = [place_stage('prune', SMALL, hardware, 32, 512, teacher=teacher) for teacher in (None, SMALL)]
    assert [place.micro_batch for place in places] == [8, 4]


def test_the_peak_is_that_of_planning():
    place = place_stage('prune', SMALL, Hardware(4), 4, 512)
    assert place.peak == estimate_memory(SMALL, TrainingSetup(4, 'fsdp2', 1, 512)).total


def test_a_cpu_takes_float32_and_no_shards():
    hardware = Hardware(0)
    assert (hardware.precision, hardware.sharded) == ('fp32', False)
    assert place_stage('prune', SMALL, hardware, 32, 512).micro_batch == 4
    assert (Hardware(1).precision, Hardware(1).sharded, Hardware(2).sharded) == ('amp_bf16', False, True)


@pytest.mark.parametrize(
    'gpus, memory, message',
    [(-1, 80, '--gpus -1'), (12, 80, 'whole nodes of 8'), (8, 0, '--gpu-memory 0'), (8, float('nan'), 'gpu-memory')],
)
def test_hardware_that_is_none(gpus, memory, message):
    with pytest.raises(ValueError, match=message):
        Hardware(gpus, memory)
