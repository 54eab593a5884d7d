"""The order of samples as docs/data-order.md describes it, in plain lists: what code without lists must give."""

from __future__ import annotations

import itertools

import numpy as np

from moe.data.read.permutation import key_of, permuted, scattered
from moe.data.read.shares import BLOCK


def place(element: int, size: int, key: int) -> int:
    return int(permuted(np.array([element]), np.array([size]), np.array([key], np.uint64))[0])


def hashed(key: int, number: int) -> int:
    return int(scattered(key, np.array([number]))[0])


def cut(things: list, lengths: list[int]) -> list[list]:
    ends = np.cumsum([0, *lengths]).tolist()
    return [things[a:b] for a, b in itertools.pairwise(ends)]


def plain_pass(sizes: list[int], lengths: list[int], window: int, run_key: int, pass_key: int) -> list[list[int]]:
    """One pass over a stream: the samples of each stripe in order. lengths: samples of each stripe."""
    ids = cut(list(range(sum(sizes))), sizes)
    in_run = sorted(
        (shard for shard in range(len(sizes)) if sizes[shard]), key=lambda s: hashed(run_key, kept(sizes, s))
    )
    line = [(shard, sample) for shard in in_run for sample in ids[shard]]
    numbered, pieces = [], []
    for stripe in cut(line, lengths):
        found: list[list[int]] = []
        last = None
        for shard, sample in stripe:
            if shard != last:
                found.append([])
            found[-1].append(sample)
            last = shard
        first = sum(map(len, pieces))
        numbered.append(sorted(range(first, first + len(found)), key=lambda number: hashed(pass_key, number)))
        pieces.append(found)
    flat = [piece for stripe in pieces for piece in stripe]
    position, block_number, stripes = 0, len(flat), []
    for numbers in numbered:
        parts = []  # of each piece of the stripe: its permuted rows in `window` parts
        for number in numbers:
            rows = flat[number]
            moved = [rows[place(rank, len(rows), hashed(pass_key + 1, position))] for rank in range(len(rows))]
            parts.append([moved[len(rows) * h // window : len(rows) * (h + 1) // window] for h in range(window)])
            position += 1
        samples: list[int] = []
        for first, last in blocks_of(len(numbers), window):
            block = [
                sample
                for j, of in enumerate(parts)
                for h, part in enumerate(of)
                if first <= j + h <= last
                for sample in part
            ]
            key = hashed(pass_key, block_number)
            samples += [block[place(i, len(block), key)] for i in range(len(block))]
            block_number += 1
        stripes.append(samples)
    return stripes


def kept(sizes: list[int], shard: int) -> int:
    """Its number among the shards that hold something."""
    return sum(1 for size in sizes[:shard] if size)


def blocks_of(pieces: int, window: int) -> list[tuple[int, int]]:
    """Part h of piece j lies in block j + h; those of the beginning are one, and those of the end."""
    if not pieces:
        return []
    if pieces <= window:
        return [(0, pieces + window)]
    single = [(block, block) for block in range(window - 1, pieces)]
    return single if window == 1 else [(0, window - 2), *single, (pieces, pieces + window)]


def plain_epoch(
    sizes: list[list[int]], counts: list[int], *, seed: int, stripes: int, window: int, epoch: int
) -> list[list[int]]:
    """The samples of each stripe, in order, counted over all streams."""
    streams: list[list[list[int]]] = []  # of each stream, its samples in each stripe
    begin, first = 0, 0
    for stream, (of, count) in enumerate(zip(sizes, counts, strict=True)):
        held, found = sum(of), [[] for _ in range(stripes)]
        for number in range(-(-count // held)):
            line = range(begin + number * held, begin + (number + 1) * held)
            lengths = [sum(1 for x in line if x % stripes == c) for c in range(stripes)]
            keys = key_of(seed, 1, stream), key_of(seed, 3, stream, epoch, number)
            for c, samples in enumerate(plain_pass(of, lengths, window, *keys)):
                taken = sum(1 for x in line if x < begin + count and x % stripes == c)
                found[c] += [first + sample for sample in samples[:taken]]
        streams.append(found)
        begin, first = begin + count, first + held
    return [mixed([of[c] for of in streams], c, key_of(seed, 2, epoch)) for c in range(stripes)]


def mixed(streams: list[list[int]], stripe: int, key: int) -> list[int]:
    if len(streams) == 1:
        return streams[0]
    length = sum(map(len, streams))
    blocks = max(1, length // max(BLOCK, 4 * len(streams)))
    result: list[int] = []
    for block in range(blocks):
        ends = [[int(len(of) * b / blocks + 0.5) for of in streams] for b in (block, block + 1)]
        names = [s for s, (a, b) in enumerate(zip(*ends, strict=True)) for _ in range(a, b)]
        inside = [place(i, len(names), hashed(key, stripe * blocks + block)) for i in range(len(names))]
        result += [streams[names[i]][ends[0][names[i]] + i - names.index(names[i])] for i in inside]
    return result
