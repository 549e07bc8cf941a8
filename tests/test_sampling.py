"""Shares of conditions, length buckets, and what each process gets."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.samplers.num_elements_batch_sampler import NumElementsBatchSampler

from espnet_smoe.config import ConfigError
from espnet_smoe.files import write_table
from espnet_smoe.guide import GuideTable
from espnet_smoe.sampling import (
    ConditionSampler,
    SamplingConfig,
    deal,
    draws,
    name_of,
    read_conditions,
)

GUIDES = GuideTable.from_mapping(
    {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de", "st_es"]}
)
COUNTS = {
    ("nb", "asr"): 30,
    ("nb", "asr", "st_de"): 7,
    ("wb", "asr", "st_es"): 211,
    ("wb", "st_es"): 2,
}
BINS = 400_000
CONFIGS = {
    "as-in-the-data": {},
    "temperature-2": {"temperature": 2.0},
    "all-alike": {"temperature": math.inf},
    "weights": {"weights": {"nb": 3.0, "st_es": 0.5}},
    "both": {"temperature": 5, "weights": {"st_de": 2}},
}


def corpus(seed: int = 0) -> tuple[dict[str, int], dict[str, tuple]]:
    """Lengths in samples, the narrowband ones shorter, and conditions."""
    rng = np.random.default_rng(seed)
    lengths, conditions = {}, {}
    for number, (condition, count) in enumerate(COUNTS.items()):
        for n in range(count):
            name = f"u{number}-{n:03}"
            scale = 20_000 if condition[0] == "nb" else 60_000
            lengths[name] = 8000 + int(rng.exponential(scale))
            conditions[name] = condition
    return lengths, conditions


LENGTHS, CONDITIONS = corpus()


def sampler(config: dict | None = None, **others) -> ConditionSampler:
    made = SamplingConfig.from_mapping(config or {}, GUIDES)
    options = {"batch_bins": BINS, **others}
    return ConditionSampler(LENGTHS, CONDITIONS, made, **options)


def shares_of(batches: list[list[str]]) -> Counter:
    return Counter(CONDITIONS[u] for batch in batches for u in batch)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_shares_are_those_of_the_formula(config) -> None:
    temperature, weights = config.get("temperature", 1), config.get("weights", {})
    sizes = {}
    for condition, count in COUNTS.items():
        sizes[condition] = count ** (1 / temperature)
        for guide in condition:
            sizes[condition] *= weights.get(guide, 1)
    for seed in (0, 5):
        drawn = shares_of(sampler(config).generate(seed))
        for condition, size in sizes.items():
            # a pass has as many utterances as the data, in whole numbers
            want = sum(COUNTS.values()) * size / sum(sizes.values())
            assert abs(drawn[condition] - max(want, 1)) <= 0.5


def test_without_options_a_pass_is_the_data() -> None:
    drawn = [u for batch in sampler().generate(3) for u in batch]
    assert sorted(drawn) == sorted(LENGTHS)


def test_a_huge_corpus_and_a_low_temperature_do_not_overflow() -> None:
    counts = {("nb", "asr"): 10**7, ("wb", "asr"): 10**6}
    got = draws(counts, SamplingConfig(temperature=0.01))
    assert got == {("nb", "asr"): 11 * 10**6, ("wb", "asr"): 1}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_condition_is_gone_through_evenly(config) -> None:
    made = sampler(config)
    # by the golden ratio, no utterance waits longer than a few times its turn
    passes = max(math.ceil(6 * n / made.draws[c]) for c, n in COUNTS.items())
    times = Counter(u for p in range(passes) for b in made.generate(p) for u in b)
    assert set(times) == set(LENGTHS)
    for condition, count in COUNTS.items():
        expected = passes * made.draws[condition] / count
        seen = [times[u] for u in LENGTHS if CONDITIONS[u] == condition]
        assert max(seen) - min(seen) <= 0.5 * expected + 3


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_utterance_is_drawn_a_whole_number_below_or_above_its_share(config) -> None:
    made = sampler(config)
    for seed in range(7):
        times = Counter(u for batch in made.generate(seed) for u in batch)
        for name in LENGTHS:
            ratio = made.draws[CONDITIONS[name]] / COUNTS[CONDITIONS[name]]
            assert math.floor(ratio) <= times[name] <= math.ceil(ratio)


def test_an_utterance_drawn_often_is_spread_over_batches() -> None:
    config = {"weights": {"nb": 4.0}}
    made = sampler(config, batch_bins=BINS // 2)
    for seed in range(5):
        batches = made.generate(seed)
        assert max(Counter(u for b in batches for u in b).values()) == 3
        # the shortest utterances, left over at the end, may fill fewer batches
        assert sum(len(set(b)) < len(b) for b in batches) <= 2
    tied = sampler({"weights": {"nb": 4.0, "wb": 4.0}}, batch_bins=BINS // 2)
    assert all(len(set(b)) == len(b) for b in tied.generate(1))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_batches_keep_to_the_bins(config, ranks) -> None:
    parts = [sampler(config, rank=r, ranks=ranks) for r in range(ranks)]
    for seed in range(7):
        for shares in zip(*(s.generate(seed) for s in parts), strict=True):
            batch = [u for share in shares for u in share]
            bins = len(batch) * max(LENGTHS[u] for u in batch)
            # the shortest that were left over may join a batch of that many more
            assert bins <= BINS or len(batch) < 2 * ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_what_is_left_over_keeps_to_the_bins(ranks) -> None:
    bins = 40
    for count in range(ranks, 30):
        for length in (10, 13, 25):
            lengths = {f"u{n:02}": length for n in range(count)}
            made = [
                ConditionSampler(
                    lengths,
                    dict.fromkeys(lengths, ("nb", "asr")),
                    SamplingConfig(),
                    bins,
                    rank,
                    ranks,
                )
                for rank in range(ranks)
            ]
            shares = zip(*(s.generate(0) for s in made), strict=True)
            batches = [[u for share in parts for u in share] for parts in shares]
            assert sorted(u for batch in batches for u in batch) == sorted(lengths)
            sizes = [len(batch) for batch in batches]
            assert min(sizes) >= ranks
            # none too large that could be two
            assert all(n * length <= bins or n < 2 * ranks for n in sizes)


def test_long_utterances_are_batches_of_their_own() -> None:
    lengths = {"a": 10, "b": 1000, "c": 9, "d": 1200}
    conditions = dict.fromkeys(lengths, ("nb", "asr"))
    made = ConditionSampler(lengths, conditions, SamplingConfig(), 100)
    assert sorted(map(sorted, made.generate(0))) == [["a", "c"], ["b"], ["d"]]


def padding(batches) -> float:
    """Share of a pass that is padding."""
    padded = sum(len(b) * max(LENGTHS[u] for u in b) for b in batches)
    return 1 - sum(LENGTHS[u] for b in batches for u in b) / padded


def test_length_buckets_are_as_tight_as_the_hosts(tmp_path: Path) -> None:
    write_table(tmp_path / "shape", LENGTHS)
    host = list(NumElementsBatchSampler(BINS, [str(tmp_path / "shape")]))
    assert padding(sampler().generate(0)) <= padding(host) + 0.02
    assert padding(sampler({"temperature": 2.0}).generate(0)) <= padding(host) + 0.1
    unsorted = [list(LENGTHS)[n::40] for n in range(40)]
    assert padding(unsorted) > 0.5


def test_the_same_seed_gives_the_same_pass_and_another_another() -> None:
    config = {"weights": {"nb": 0.3}}
    assert sampler(config).generate(4) == sampler(config).generate(4)
    made = sampler(config)
    passes = [made.generate(seed) for seed in range(20)]
    assert all(len(batches) == len(made) for batches in passes)
    assert all(one != other for one, other in pairwise(passes))


@pytest.mark.parametrize("iters", [None, 5, 1000], ids="{}-batches-an-epoch".format)
def test_epochs_of_any_length_go_on_where_the_last_one_stopped(iters) -> None:
    made = sampler({"temperature": 2.0})

    def factory() -> SequenceIterFactory:
        return SequenceIterFactory(
            dataset=None, batches=made, num_iters_per_epoch=iters, seed=1, shuffle=True
        )

    def batches(epoch: int) -> list[list[str]]:
        return list(factory().build_iter(epoch).batch_sampler)

    assert all(len(batches(e)) == (iters or len(made)) for e in (1, 2, 3))
    # a new factory, as after a resumed training, gives the same
    assert batches(3) == list(factory().build_iter(3).batch_sampler)
    if iters == 5:
        epochs = math.ceil(len(made) / 5) * 4
        times = shares_of([b for e in range(1, epochs + 1) for b in batches(e)])
        total = sum(made.draws.values())
        for condition, count in made.draws.items():
            assert times[condition] / times.total() == pytest.approx(
                count / total, abs=0.02
            )


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_process_starves_a_condition(config, ranks) -> None:
    parts = [sampler(config, rank=r, ranks=ranks) for r in range(ranks)]
    (whole,) = {len(p) for p in parts}
    for n in range(whole):
        mine = [Counter(CONDITIONS[u] for u in p.generate(2)[n]) for p in parts]
        for condition in COUNTS:
            shares = [counter[condition] for counter in mine]
            assert max(shares) - min(shares) <= 1
            assert min(shares) >= 1 or sum(shares) < ranks
        sizes = [counter.total() for counter in mine]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1


def test_processes_share_a_pass_without_overlap() -> None:
    parts = [sampler({"temperature": 2.0}, rank=r, ranks=3) for r in range(3)]
    drawn = [u for p in parts for batch in p.generate(0) for u in batch]
    times = shares_of([drawn])
    assert times == Counter(parts[0].draws)
    assert drawn != [u for p in parts for batch in p.generate(1) for u in batch]


def test_dealt_batches_are_whole_and_even() -> None:
    batch = sorted(LENGTHS, key=LENGTHS.get)[::5]  # by length, as the host's are
    parts = [deal(batch, CONDITIONS, rank, 4) for rank in range(4)]
    assert sorted(u for part in parts for u in part) == sorted(batch)
    for condition in {CONDITIONS[u] for u in batch}:
        shares = [sum(CONDITIONS[u] == condition for u in part) for part in parts]
        assert max(shares) - min(shares) <= 1


def test_fewer_utterances_than_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 utterances cannot feed 2 processes"):
        ConditionSampler({"a": 1}, {"a": ("nb", "asr")}, SamplingConfig(), 9, 0, 2)


def test_conditions_are_read_from_what_training_reads(tmp_path: Path) -> None:
    texts = {"a": {"st_es": "x", "asr": "y"}, "b": {"asr": "y"}}
    write_table(tmp_path / "targets", {u: json.dumps(t) for u, t in texts.items()})
    write_table(tmp_path / "utt2bandwidth", {"a": "wb", "b": "nb"})
    files = {
        n: tmp_path / f
        for n, f in (("targets", "targets"), ("bandwidth", "utt2bandwidth"))
    }
    got = read_conditions(files, GUIDES)
    assert got == {"a": ("wb", "asr", "st_es"), "b": ("nb", "asr")}
    assert name_of(got["a"], GUIDES) == "wb asr+st_es"


def test_the_log_tells_the_shares() -> None:
    lines = sampler({"temperature": math.inf}).summary(GUIDES).splitlines()
    assert "nb asr: 30 utterances, 12.0% of the data, 25.0% of training" in lines[1]
    assert "each 2.07 times a pass" in lines[1]
    assert len(lines) == 1 + len(COUNTS)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"temp": 2}, "unknown keys ['temp'] in sampling; known: ['temperature', 'w"),
        ({"weights": {"nbb": 2}}, "unknown keys ['nbb'] in sampling.weights; known"),
        ({"weights": [2, 1]}, "sampling.weights must map option names"),
        ({"weights": {"nb": 0}}, "sampling.weights.nb must be > 0, got 0"),
        ({"weights": {"nb": math.inf}}, "sampling.weights.nb must be > 0, got inf"),
        ({"weights": {"nb": "2"}}, "sampling.weights.nb must be a number, got '2'"),
        ({"temperature": -1}, "sampling.temperature must be > 0, got -1"),
        ({"temperature": math.nan}, "sampling.temperature must be > 0, got nan"),
        ("nb", "sampling must map option names"),
    ],
)
def test_bad_options_are_refused(conf, message) -> None:
    with pytest.raises(ConfigError) as error:
        SamplingConfig.from_mapping(conf, GUIDES)
    assert message in str(error.value)
