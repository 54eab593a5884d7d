"""The lanes of text: what each gives, in which order, and from where it goes on."""

import itertools
import json

import numpy as np
import pyarrow as pa

from moe.data import load_tokenizer
from moe.data.read import lanes
from moe.data.read.lanes import START, documents, lane_pieces, lane_rows, validation_rows
from moe.data.text.plain_ids import encode_plain
from moe.data.text.rows import document_hashes
from moe.data.write.convert import convert
from tests.unit.data.conftest import make_texts


def split_documents(tokens, eos):
    """Token lists of the whole documents at the front of `tokens`."""
    ends = np.flatnonzero(tokens == eos)
    return [tuple(part.tolist()) for part in np.split(tokens, ends + 1)[:-1]]


def take(rows, count):
    return list(itertools.islice(rows, count))


def test_an_epoch_holds_every_training_document_once_with_transformers_ids(plan, tokenizer_folder, text_folder):
    job, tokenizer = plan().job, load_tokenizer(str(tokenizer_folder))
    eos = tokenizer.eos_token_id
    found = []
    for lane in range(job.lanes):
        mine = list(itertools.takewhile(lambda item: item[0] == 0, lane_pieces(job, lane)))
        count = sum(len(texts) for _, piece in mine for texts in documents(job, piece, split="train"))
        stream = np.concatenate([row for row, _ in take(lane_rows(job, lane, START), 400)])
        found += split_documents(stream, eos)[:count]
    texts = make_texts(260)
    ids = [f"a-{i}" for i in range(160)] + [f"l-{i}" for i in range(100)]
    hashes = document_hashes(pa.array(texts, pa.large_string()), pa.array(ids), 17)
    in_val = hashes < np.uint64(int(0.1 * 2**64))
    expected = [(*row, eos) for row in encode_plain(tokenizer, texts)]
    train = [row for row, val in zip(expected, in_val, strict=True) if not val]
    assert 10 < in_val.sum() < 50 and sorted(found) == sorted(train)
    assert found != [row for row in expected if row in set(train)]


def test_validation_documents_are_those_of_a_conversion_with_the_same_fraction_and_seed(plan, make_request):
    made = plan()
    rows = validation_rows(made.job, made.units, None)
    meta = convert(make_request(val_fraction=0.1, seq_len=made.job.seq_len))
    for split in ("train", "val"):
        parts = [texts for piece in made.job.pieces for texts in documents(made.job, piece, split=split)]
        tokens = sum(len(ids) for texts in parts for ids in lanes.encode(made.job, texts))
        assert (sum(map(len, parts)), tokens) == (meta.documents[split], meta.tokens[split])
    assert len(rows) == meta.tokens["val"] // made.job.seq_len
    assert len(validation_rows(made.job, made.units, 3)) == 3
    assert np.array_equal(validation_rows(made.job, made.units, 3), rows[:3])


def test_a_lane_goes_on_from_behind_any_block(plan):
    job = plan().job
    whole = take(lane_rows(job, 1, START), 300)
    epochs = [epoch for epoch, _ in take(lane_pieces(job, 1), whole[-1][1][0] + 1)]
    assert epochs[-1] >= 2  # over the ends of epochs
    assert len({position[:3] for _, position in whole}) > 30  # over many windows
    for cut in range(0, 300, 7):
        rest = take(lane_rows(job, 1, whole[cut][1]), 20)
        for (row, position), (expected, its_position) in zip(rest, whole[cut + 1 :], strict=False):
            assert np.array_equal(row, expected) and position == its_position


def test_going_on_encodes_one_window_again_and_not_the_piece(plan, tmp_path, monkeypatch):
    lines = [json.dumps({"text": text}) for text in make_texts(400)]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(lanes, "LEAST_PIECE", 1 << 20)
    job = plan(tmp_path / "one", lanes=1).job
    *_, (_, position) = take(lane_rows(job, 0, START), 250)
    encoded = []
    plain = lanes.encode
    monkeypatch.setattr(lanes, "encode", lambda job, texts: encoded.append(len(texts)) or plain(job, texts))
    next(lane_rows(job, 0, position))
    assert len(job.pieces) == 1 and position[1] > 100 and sum(encoded) <= 400 - position[1]
