"""Several folders as one training set: shares, order, position, errors."""

import collections
import random

import pytest

from moe.common.errors import InputError
from moe.data import StreamSpec, epoch_samples
from moe.train.callbacks.throughput import memory_gb
from tests.unit.data.conftest import numbered_rows, write_split
from tests.unit.data.read.loaders import begun, loader_of, numbers, run_ranks

SIZES = {"code": 60, "web": 240}


@pytest.fixture
def specs(tmp_path):
    """`web` holds rows 1 to 240, `code` rows 1001 to 1060."""
    for name, first in (("web", 0), ("code", 1000)):
        rows = numbered_rows(SIZES[name])
        rows[:, 0] += first
        write_split(tmp_path / name / "train", rows)

    def make(**weights):
        return {
            name: StreamSpec(str(tmp_path / name), None, "train", **weights.get(name, {})) for name in ("web", "code")
        }

    return make


def loader(specs, **more):
    return loader_of(specs, vocab_size=2000, **more)


def counts(batches):
    rows = [row for batch in batches for row in batch]
    return collections.Counter("code" if row > 1000 else "web" for row in rows)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, {"web": 237, "code": 59}),  # 300 samples, 296 in whole batches of 8
        ({"code": {"proportion": 0.25}}, {"web": 222, "code": 74}),
        ({"code": {"proportion": 1}, "web": {"proportion": 3}}, {"web": 222, "code": 74}),
        ({"code": {"repeat": 2}}, {"web": 240, "code": 120}),
        ({"code": {"repeat": 0.5}}, {"web": 235, "code": 29}),  # 270, 264 in whole batches
        ({"code": {"choose": 80}, "web": {"choose": 80}}, {"web": 80, "code": 80}),
    ],
)
def test_the_share_of_each_stream_in_every_epoch_is_the_one_asked_for(specs, weights, expected):
    made = loader(specs(**weights))
    for _ in range(2):
        assert counts(numbers(made)) == expected


def test_a_stream_read_more_than_once_repeats_all_its_samples_evenly(specs):
    seen = collections.Counter(row for batch in numbers(loader(specs(code={"repeat": 2}))) for row in batch)
    assert {seen[row] for row in range(1001, 1061)} == {2} and {seen[row] for row in range(1, 241)} == {1}


def test_batches_hold_samples_of_all_streams_and_the_order_of_names_does_not_matter(specs):
    given = specs(code={"proportion": 0.5})
    batches = numbers(loader(given))
    assert sum(len(counts([batch])) == 2 for batch in batches) >= len(batches) - 1
    assert numbers(loader(dict(reversed(given.items())))) == batches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_goes_on_from_the_exact_position(specs, workers):
    given = specs(code={"proportion": 0.4})
    whole = loader(given)
    first, second = numbers(whole), numbers(whole)
    seen, state = begun(loader(given, workers=workers), 11)
    resumed = loader(given, workers=workers)
    resumed.load_state_dict(state)
    assert seen + numbers(resumed) == first
    assert numbers(resumed) == second  # and over the epoch's end


def test_two_ranks_share_the_global_batches_of_one(specs):
    one = numbers(loader(specs(code={"proportion": 0.4})))
    given = {
        name: [spec.local, None, "train", spec.proportion] for name, spec in specs(code={"proportion": 0.4}).items()
    }
    first, second = run_ranks(given, ranks=2, batch=4, vocab_size=2000)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in one]


def test_remote_streams_are_fetched_each_from_its_own(specs, tmp_path):
    given = specs(code={"proportion": 0.4})
    remote = {
        name: StreamSpec(str(tmp_path / "cache" / name), spec.local, "train", spec.proportion)
        for name, spec in given.items()
    }
    assert numbers(loader(remote)) == numbers(loader(given))
    assert all(list((tmp_path / "cache" / name / "train").glob("shard.*.mds")) for name in given)


def test_a_shard_missing_at_one_remote_names_that_remote(specs, tmp_path):
    given = specs()
    (tmp_path / "code" / "train" / "shard.00000.mds").unlink()
    remote = {name: StreamSpec(str(tmp_path / "c" / name), spec.local, "train") for name, spec in given.items()}
    with pytest.raises(RuntimeError, match=rf"c/code/train/shard\.00000\.mds: cannot be fetched from {tmp_path}/code"):
        numbers(loader(remote))


def test_a_stream_of_another_sequence_length_is_named(specs, tmp_path):
    write_split(tmp_path / "short" / "train", numbered_rows(20, seq_len=8))
    with pytest.raises(InputError, match=r"short/train: made with --seq-len 8, max_seq_len is 16"):
        loader({**specs(), "short": StreamSpec(str(tmp_path / "short"), None, "train")})


def test_shares_are_exact_to_one_sample_whatever_the_sizes():
    rng = random.Random(0)
    for _ in range(500):
        names = [f"s{i}" for i in range(rng.randint(1, 6))]
        available = {name: rng.randint(50, 10**6) for name in names}
        given = {name: rng.uniform(0.05, 1) / len(names) for name in names if rng.random() < 0.7}
        specs = {name: StreamSpec(name, None, "train", given.get(name)) for name in names}
        batch = rng.randint(1, 40)
        found = epoch_samples(specs, available, global_batch=batch)
        total = sum(available.values()) // batch * batch
        assert sum(found.values()) == total
        if not given:
            assert all(found[name] <= available[name] for name in names)
        rest = sum(available[name] for name in names if name not in given)
        left = 1 - sum(given.values()) if rest else 0
        shares = {name: given[name] if name in given else left * available[name] / rest for name in names}
        for name in names if given else []:
            assert abs(found[name] - total * shares[name] / sum(shares.values())) < 1


def test_a_stream_or_an_epoch_without_samples_is_refused():
    specs = {"web": StreamSpec("w", None, "train"), "code": StreamSpec("c", None, "train", 1e-6)}
    with pytest.raises(InputError, match=r"train_data\.streams\.code: gets none of an epoch's 296 sequences"):
        epoch_samples(specs, SIZES, global_batch=8)
    with pytest.raises(InputError, match="fewer than one global batch of 512"):
        epoch_samples(specs, SIZES, global_batch=512)


def test_ten_epochs_of_five_streams_to_their_ends_and_a_resume_at_99_percent_of_one(tmp_path):
    """Every epoch holds each stream's exact share, each sample as often as the share says, in an order of its own."""
    held = {"a": 1600, "b": 1200, "c": 600, "d": 400, "e": 200}
    given = {"a": 0.3, "b": 0.3, "c": 0.2, "d": 0.15, "e": 0.05}
    specs, first, stream_of = {}, {}, {}
    for name, count in held.items():
        first[name] = sum(list(held.values())[: len(first)])
        rows = numbered_rows(count)
        rows[:, 0] += first[name]
        write_split(tmp_path / name / "train", rows, size_limit=3000)
        specs[name] = StreamSpec(str(tmp_path / name), None, "train", proportion=given[name])
        stream_of.update(dict.fromkeys(range(first[name] + 1, first[name] + count + 1), name))
    more = {"batch": 40, "vocab_size": 4001}
    made = loader_of(specs, **more)
    assert len(made.dataset.shards) > 40
    epochs, memory = [], []
    for _ in range(10):
        epochs.append([row for batch in numbers(made) for row in batch])
        memory.append(memory_gb()["memory/process_gb"])
    expected = {name: round(4000 * share) for name, share in given.items()}
    for seen in epochs:
        assert collections.Counter(map(stream_of.get, seen)) == expected
        often = collections.Counter(seen)
        for name, count in expected.items():
            times = {often[row] for row in range(first[name] + 1, first[name] + held[name] + 1)}
            assert times <= {count // held[name], -(-count // held[name])}, name
    assert len({tuple(seen) for seen in epochs}) == 10
    assert memory[-1] - memory[1] < 0.01, "GB; of epochs nothing stays"
    at = {**made.dataset.state_dict(0, True), "epoch": 7, "sample_in_epoch": 3960}
    resumed = loader_of(specs, **more)
    resumed.load_state_dict(at)
    for rest in (epochs[7][3960:], epochs[8]):
        assert [row for batch in numbers(resumed) for row in batch] == rest
