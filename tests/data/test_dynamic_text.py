"""The loader: one sequence for any ranks and workers, from any kind of data, resumed anywhere."""

from __future__ import annotations

import json
import logging
import pickle
from functools import partialmethod

import numpy as np
import pytest
import torch
from streaming.base.world import World

from llmshearing.data import mixture
from llmshearing.data.dealing import deal
from llmshearing.data.dynamic_text import build_dynamic_text_dataloader
from llmshearing.data.rounds import MixtureRounds
from tests.data.dynamic_text_folder import SIZES, folder  # noqa: F401
from tests.dynamic_text_world import (
    SEQ_LEN,
    dynamic_loader,
    next_mixture,
    on_ranks,
    read_back,
    serve_rounds,
    tiny_tokenizer,
    tokens_of,
    write_domains,
)

pytestmark = pytest.mark.usefixtures('closed_loaders')

ROUNDS = 4


@pytest.fixture(scope='module')
def sequence(folder):
    """Four rounds of five batches, read in the process itself."""
    return serve_rounds(dynamic_loader(folder, list(SIZES)), ROUNDS)


@pytest.mark.parametrize('nodes,ranks,workers', [(1, 1, 1), (1, 2, 3), (2, 2, 1), (1, 4, 3), (4, 1, 2), (1, 8, 5)])
@pytest.mark.parametrize('batches', [0, 1, 7, 12])
def test_dealing_gives_every_world_the_same_global_batches(nodes, ranks, workers, batches):
    samples = np.random.default_rng(0).permutation(16 * batches).reshape(batches, 16)
    size = 16 // (nodes * ranks)
    dealt = deal(samples, World(nodes, ranks, workers, 0), size)
    for batch in range(batches):
        parts = [dealt[node, rank, batch % workers, batch // workers] for node in range(nodes) for rank in range(ranks)]
        assert np.array_equal(np.concatenate(parts), samples[batch])
    assert (dealt == -1).sum() == dealt.size - samples.size


@pytest.mark.parametrize('workers', [1, 3])
def test_any_number_of_workers_serves_the_same_sequence(folder, sequence, workers):
    """Workers persist and read ahead: a batch of an old mixture would show."""
    assert serve_rounds(dynamic_loader(folder, list(SIZES), workers), ROUNDS) == sequence


def serve_rank(rank, folder, place, batch_size, workers, dataset):
    batches = serve_rounds(dynamic_loader(folder, list(SIZES), workers, batch_size, **dataset), ROUNDS)
    (place / str(rank)).write_text(json.dumps(batches))


@pytest.mark.parametrize(('ranks', 'batch_size', 'workers', 'replication'), [(2, 2, 0, 1), (4, 1, 1, 1), (4, 2, 3, 2)])
def test_any_number_of_ranks_serves_the_same_sequence(
    folder, sequence, tmp_path, ranks, batch_size, workers, replication
):
    """With replication, as for tensor parallelism, so many neighbouring ranks get the same samples."""
    dataset = {'replication': replication} if replication > 1 else {}
    on_ranks(ranks, serve_rank, folder, tmp_path, batch_size, workers, dataset)
    served = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(ranks)]
    for rank in range(0, ranks, replication):
        assert all(served[rank] == served[rank + other] for other in range(replication))
    for number, batch in enumerate(sequence):
        parts = [tuple(row) for rank in range(0, ranks, replication) for row in served[rank][number]]
        assert parts == batch


def refuse_other_nodes(rank, folder):
    torch.distributed.init_process_group('gloo')
    for change, match in (
        (
            {'proportions': {'a': 1 + rank, 'b': 1, 'c': 2}},
            r'weight of domain a: 0\.4\d* on rank 1 .*, 0\.25 on rank 0',
        ),
        ({'shuffle_seed': 17 + rank}, 'shuffle_seed: 18 on rank 1'),
        ({'max_seq_len': 8 - rank}, '^Domain .* max_seq_len is 7' if rank else '^On rank 1 .* max_seq_len is 7'),
        ({}, r'samples of domain b: 60 on rank 1 \(.+\), 400 on rank 0 \(.+\); .* copy those of rank 0'),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=match):
            if not change:  # two nodes share no memory, so here they differ in what they have read of it
                sizes = {'a': 9, 'b': 60 if rank else 400, 'c': 5}
                patch.setattr(MixtureRounds, '__init__', partialmethod(with_sizes, MixtureRounds.__init__, sizes))
            dynamic_loader(folder, list('abc'), **change)
    torch.distributed.destroy_process_group()


def with_sizes(rounds, stock, other, *, sizes, **settings):
    stock(rounds, sizes=other, **settings)


def test_nodes_whose_data_or_mixture_differ_are_refused(folder):
    on_ranks(2, refuse_other_nodes, folder)


def test_the_sequence_is_the_planned_one(folder, sequence):
    """Each domain's samples, once per pass, in the shares of the mixtures that were set."""
    sizes = [int(n) for n in SIZES.values()]
    state = mixture.initial_state(sizes)
    for number in range(ROUNDS):
        counts, state = mixture.round_counts(state, 5, 4)
        for row, batch in zip(counts, sequence[5 * number :], strict=False):
            assert np.bincount([domain for domain, _ in batch], minlength=3).tolist() == row.tolist()
        state = mixture.with_weights(state, mixture.quantize(list(next_mixture(number).values())))
    for domain, size in enumerate(sizes):
        samples = [sample for batch in sequence for number, sample in batch if number == domain]
        assert set(samples) <= set(range(size))
        assert len(set(samples[:size])) == len(samples[:size])


@pytest.mark.parametrize('seed,same', [(17, True), (18, False)])
def test_the_seed_decides(folder, sequence, seed, same):
    again = serve_rounds(dynamic_loader(folder, list(SIZES), shuffle_seed=seed), ROUNDS)
    assert (again == sequence) is same


def test_the_process_random_state_does_not_matter(folder, sequence):
    torch.manual_seed(5)
    np.random.seed(5)
    assert serve_rounds(dynamic_loader(folder, list(SIZES)), ROUNDS) == sequence


def stop_after(loader, stop):
    """Serves ``stop`` batches and returns the state then, saved as Composer would, through JSON."""
    done = 0
    while True:
        for _ in loader:
            done += 1
            if done % 5 == 0:
                loader.dataset.rounds.set_next_weights(next_mixture(loader.dataset.rounds.state.round))
            if done == stop:
                return json.loads(json.dumps(loader.dataset.state_dict(4 * ((stop - 1) % 5 + 1), True)))


def serve_on(loader, rounds):
    """Batches from where the loader stands to the end of round number ``rounds`` - 1."""
    batches = []
    while loader.dataset.rounds.state.round < rounds - 1 or not loader.dataset.rounds.finished:
        batches += serve_rounds(loader, 1)
    return batches


@pytest.mark.parametrize('stop', range(1, 5 * ROUNDS))
def test_resuming_anywhere_gives_the_rest_of_the_sequence(folder, sequence, stop):
    state = stop_after(dynamic_loader(folder, list(SIZES), workers=stop % 2), stop)
    resumed = dynamic_loader(folder, list(SIZES), workers=(0, 1, 3)[stop % 3] if stop % 4 == 0 else 0)
    resumed.dataset.load_state_dict(state)
    assert serve_on(resumed, ROUNDS) == sequence[stop:]


def test_resuming_after_the_close_of_a_round(folder, sequence):
    loader = dynamic_loader(folder, list(SIZES))
    serve_rounds(loader, 2)
    state = loader.dataset.state_dict(0, True)
    assert state['round'] == 2
    resumed = dynamic_loader(folder, list(SIZES), workers=1)
    resumed.dataset.load_state_dict(state)
    assert serve_on(resumed, ROUNDS) == sequence[10:]
    # Going back in the same process is no different.
    resumed.dataset.load_state_dict(state)
    assert serve_on(resumed, ROUNDS) == sequence[10:]


def test_samples_counted_from_where_this_run_began(folder):
    state = stop_after(dynamic_loader(folder, list(SIZES)), 7)
    loader = dynamic_loader(folder, list(SIZES))
    loader.dataset.load_state_dict(state)
    next(iter(loader))
    assert loader.dataset.state_dict(4, False) == loader.dataset.state_dict(12, True)


def test_leaving_a_round_early_repeats_it(folder, sequence):
    loader = dynamic_loader(folder, list(SIZES), workers=1)
    for _ in range(2):
        batches = [read_back(batch) for _, batch in zip(range(3), loader, strict=False)]
        assert batches == sequence[:3]


def test_rounds_have_a_length(folder):
    loader = dynamic_loader(folder, list(SIZES), round_batches=7)
    assert len(loader) == 7
    assert len(list(loader)) == 7


def test_a_data_set_can_be_sent_to_another_process(folder):
    dataset = dynamic_loader(folder, list(SIZES)).dataset
    with pytest.raises(RuntimeError, match='through a DynamicTextLoader'):
        dataset.round_samples()
    dataset.start_round()
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).round_samples(), dataset.round_samples())


@pytest.mark.parametrize(
    'encoding', ['ndarray:uint16', f'ndarray:uint16:{SEQ_LEN}', 'ndarray:uint32', 'ndarray:int64', 'bytes']
)
def test_every_way_tokens_are_stored_reads_the_same(tmp_path, encoding):
    write_domains(tmp_path, {'a': 9, 'b': 5}, encoding=encoding)
    for batch in dynamic_loader(tmp_path, ['a', 'b']):
        assert batch['input_ids'].dtype == torch.int64
        for row, (domain, sample) in zip(batch['input_ids'], read_back(batch), strict=True):
            assert row.tolist() == tokens_of(domain, sample).tolist()


def test_tokens_equal_to_padding_stay_in_the_loss(folder):
    """Many tokenizers pad with their end-of-text token, and packed samples are full of those."""
    batch = next(iter(dynamic_loader(folder, list(SIZES))))
    assert (batch['input_ids'] == tiny_tokenizer().pad_token_id).any()
    assert torch.equal(batch['labels'], batch['input_ids'])
    assert batch['loss_generating_tokens'] == [SEQ_LEN - 1] * 4


def test_sequence_ids_come_from_the_collator_of_llm_foundry(folder):
    batch = next(iter(dynamic_loader(folder, list(SIZES), eos_token_id=1)))
    assert batch['sequence_id'].shape == (4, SEQ_LEN)


def test_remote_shards_with_a_small_cache(tmp_path):
    """The cache holds a few of the shards only, and their hashes are checked."""
    remote = write_domains(tmp_path / 'remote', {'a': 400, 'b': 300, 'c': 200}, shard_samples=20)
    expected = serve_rounds(dynamic_loader(remote, list(SIZES), round_batches=40), 3)
    shards = [file.stat().st_size for file in remote.rglob('*.mds')]
    limit = sum(file.stat().st_size for file in remote.rglob('index.json')) + 8 * max(shards)
    cache = tmp_path / 'cache'
    loader = dynamic_loader(
        cache,
        list(SIZES),
        workers=2,
        round_batches=40,
        remote=str(remote),
        cache_limit=limit,
        validate_hash='xxh64',
        predownload=4,
    )
    assert serve_rounds(loader, 3) == expected
    kept = [file.stat().st_size for file in cache.rglob('*.mds')]
    assert len(kept) < len(shards) / 2
    assert sum(kept) <= limit


def test_domains_can_have_their_own_place_and_data_of_their_size_counts(tmp_path):
    write_domains(tmp_path / 'one', {'a': 12})
    write_domains(tmp_path / 'two', {'x': 1, 'b': 4})
    loader = dynamic_loader(tmp_path / 'one', {'a': None, 'b': {'local': str(tmp_path / 'two' / 'b')}})
    assert loader.dataset.rounds.weights == {'a': 0.75, 'b': 0.25}
    assert {domain for batch in loader for domain, _ in read_back(batch)} == {0, 1}


def test_what_is_for_workers_is_nothing_without_them(folder):
    config = {'local': str(folder), 'domains': ['a'], 'max_seq_len': SEQ_LEN, 'round_batches': 1}
    loader = build_dynamic_text_dataloader(tiny_tokenizer(), 2, config, timeout=30).dataloader
    assert (loader.timeout, loader.prefetch_factor, loader.persistent_workers) == (0, None, False)


def test_passes_are_logged_and_the_limit_warned_of(folder, caplog):
    loader = dynamic_loader(folder, list(SIZES), proportions={'a': 0, 'b': 0, 'c': 1}, max_passes=2)
    with caplog.at_level(logging.INFO, logger='llmshearing'):
        for _ in range(3):
            for _ in loader:
                pass
    assert [(record.levelname, record.getMessage()) for record in caplog.records if 'pass' in record.getMessage()] == [
        ('WARNING', 'Mixing round 0 goes over to pass 2 of domain c.'),  # seen whatever the level
        ('INFO', 'Mixing round 1 goes over to pass 3 of domain c.'),
        ('INFO', 'Mixing round 2 goes over to pass 4 of domain c.'),
        ('WARNING', 'Mixing round 2 goes through domain c more than max_passes=2 times.'),
    ]
    assert loader.dataset.rounds.used() == {'a': 0, 'b': 0, 'c': 60}
