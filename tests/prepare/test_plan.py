"""Duplicates, intervals and places, against direct computations."""

from __future__ import annotations

import numpy as np
import pytest

from llmshearing.prepare import plan as prepare_plan
from llmshearing.prepare.plan import BINS, Demand, TokenRate, choose, intervals, mark_duplicates, place
from llmshearing.prepare.worker import DOCUMENT


def _documents(rng, count, distinct):
    documents = np.zeros(count, DOCUMENT)
    words = rng.integers(0, 2**64, (distinct, 2), np.uint64)
    chosen = rng.integers(0, distinct, count)
    documents['high'], documents['low'] = words[chosen].T
    documents['size'] = 100
    return documents


def test_places_are_uniform_and_depend_on_the_seed():
    low = np.random.default_rng(0).integers(0, 2**64, 1 << 16, np.uint64)
    low[: 1 << 15] = np.arange(1 << 15, dtype=np.uint64)  # also for hashes that are close together
    one, two = place(low, 1), place(low, 2)
    assert one.min() >= 0 and one.max() < BINS
    counts = np.bincount(one * 16 // BINS, minlength=16)
    assert np.abs(counts - 4096).max() < 5 * np.sqrt(4096)  # five standard deviations
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
    assert np.array_equal(one, place(low, 1))


def test_splitmix64_reference_values():
    # The first outputs of SplitMix64 from seed 0 (Steele, Lea and Flood 2014) are its finalizer at multiples of gamma.
    assert place(np.zeros(1, np.uint64), 0)[0] == 0xE220A8397B1DCDAF >> 46
    assert place(np.zeros(1, np.uint64), 1)[0] == 0x6E789E6AA1B965F4 >> 46


EXACT = TokenRate(1.0)


def _intervals(demands, size, rate=EXACT, length=8):
    return intervals(demands, size, size**2, rate, length)  # at most one document in a bin


def test_fractions_are_shares_of_the_hash():
    ends = _intervals([Demand(0.25, None), Demand(0.5, 7), Demand(None, None)], np.ones(BINS))
    assert ends.tolist() == [BINS // 4, BINS * 3 // 4, BINS]
    ends = _intervals([Demand(None, None), Demand(0.25, None)], np.ones(BINS))
    assert ends.tolist() == [BINS * 3 // 4, BINS]  # the rest leaves later fractions alone


def test_budgets_get_their_bytes_and_a_margin():
    size, length = np.full(BINS, 3.0), 16
    ends = _intervals([Demand(None, 1000), Demand(None, 5000), Demand(None, None)], size, TokenRate(0.25), length)
    for tokens, bins in zip((1000, 5000), np.diff([0, *ends])):
        need = 1.02 * (tokens + length) / 0.25 / 3
        assert need <= bins < need + 1
    assert ends[2] == BINS
    assert _intervals([Demand(None, 1000)], size, TokenRate(0.25), length)[0] == ends[0]  # the last one, too


def test_margin_of_three_deviations():
    size, rate = np.full(BINS, 100.0), TokenRate(0.25, deviation=0.1, error=0.002)
    bins = int(_intervals([Demand(None, 10_000)], size, rate, 8)[0])
    sure = [0.25 * 100 * n - 3 * np.sqrt(0.1**2 * 100**2 * n + (0.002 * 100 * n) ** 2) for n in (bins - 1, bins)]
    assert sure[0] < 10_008 <= sure[1]


def test_rate_of_a_sample():
    """The ratio estimator, against the sums written out; and how often three deviations hold."""
    rng = np.random.default_rng(0)
    size = rng.lognormal(6, 1.2, 3000).round()
    tokens = (size * rng.normal(0.3, 0.05, 3000)).round()
    sums = [x.sum() for x in (tokens, size, tokens**2, tokens * size, size**2)]
    rate = TokenRate.measured(*map(int, sums))
    assert rate.mean == pytest.approx(tokens.sum() / size.sum())
    assert rate.deviation == pytest.approx(np.sqrt(((tokens - rate.mean * size) ** 2).sum() / (size**2).sum()))
    assert rate.deviation == pytest.approx(0.05, rel=0.1)
    met = 0
    for trial in range(200):
        order = np.random.default_rng(trial).permutation(3000)
        bins = np.zeros(BINS)
        bins[:3000] = size[order]
        end = int(_intervals([Demand(None, 5000), Demand(None, None)], bins, rate)[0])
        met += tokens[order][:end].sum() >= 5008
    assert met >= 198


def test_small_domains_leave_half_to_the_next_split():
    size = np.zeros(BINS)
    size[:: BINS // 8] = 10  # eight documents
    ends = _intervals([Demand(None, 10**9), Demand(None, 10**9), Demand(None, None)], size)
    assert [size[a:b].sum() for a, b in zip([0, *ends], ends)] == [40, 20, 20]
    size[0] = 10**6  # more than half in one document: it goes to the first split, alone
    ends = _intervals([Demand(None, 10**9), Demand(None, None)], size)
    assert [np.count_nonzero(size[a:b]) for a, b in zip([0, *ends], ends)] == [1, 7]


def test_budget_zero_takes_nothing():
    ends = _intervals([Demand(None, 0), Demand(None, 10), Demand(None, 0)], np.ones(BINS), length=2)
    assert ends[0] == 0 and ends[2] == ends[1] > 0


def test_choose():
    rng = np.random.default_rng(1)
    documents = _documents(rng, 1000, 1000)
    duplicate = rng.random(1000) < 0.1
    ends = np.array([BINS // 8, BINS // 8, BINS // 2])
    expected = []
    for bin_, dropped in zip(place(documents['low'], 3), duplicate):
        split = 0 if bin_ < ends[0] else 2 if bin_ < ends[2] else -1
        expected.append(-1 if dropped else split)
    assert choose(documents, duplicate, ends, 3).tolist() == expected


@pytest.mark.parametrize('bucket', [1, 7, 100, 10**6])
@pytest.mark.parametrize('block', [13, 1 << 18])
def test_duplicates_are_all_but_the_first(tmp_path, monkeypatch, bucket, block):
    monkeypatch.setattr(prepare_plan, 'BLOCK', block)
    rng = np.random.default_rng(bucket)
    scans = [_documents(rng, count, 40) for count in (60, 0, 1, 90)]
    scans[3][:30] = scans[0][:30]
    paths = [tmp_path / f'{i}.bin' for i in range(4)]
    for path, scan in zip(paths, scans):
        path.write_bytes(scan.tobytes())
    mark_duplicates(paths, tmp_path / 'out', bucket)
    seen, expected = set(), []
    for document in np.concatenate(scans):
        text = (int(document['high']), int(document['low']))
        expected.append(int(text in seen))
        seen.add(text)
    assert np.fromfile(tmp_path / 'out', np.uint8).tolist() == expected
    assert sum(expected) > 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ['0.bin', '1.bin', '2.bin', '3.bin', 'out']
