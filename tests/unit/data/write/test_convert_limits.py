"""--max-documents and --max-tokens take whole documents, in order."""

import gzip

import numpy as np
import pytest

from moe.common.errors import InputError
from moe.data import load_tokenizer
from moe.data.text.plain_ids import encode_plain
from moe.data.write.convert import convert
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet


@pytest.mark.parametrize("limit", [1, 37, 150, 151, 290])
def test_max_documents_is_exact_and_takes_files_in_order(tmp_path, make_request, limit):
    for i in range(2):
        write_parquet(
            tmp_path / "text" / f"{i}.parquet", [f"{i} {text} and then some more" for text in make_texts(150, seed=i)]
        )
    meta = convert(make_request(max_documents=limit, val_fraction=0.0, seq_len=4))
    assert sum(meta.documents.values()) == limit
    first = convert(make_request(out=tmp_path / "w2", workers=2, max_documents=limit, val_fraction=0.0, seq_len=4))
    assert first == meta
    assert folder_bytes(tmp_path / "w2") == folder_bytes(tmp_path / "out")


@pytest.mark.parametrize("limit", [100, 5000, 9000])
def test_max_tokens_is_the_most_whole_documents_within(tmp_path, make_request, tokenizer_folder, limit):
    everything = []
    for i in range(2):
        texts = make_texts(150, seed=i)
        everything += [text for text in texts if text.strip()]
        write_parquet(tmp_path / "text" / f"{i}.parquet", texts)
    lengths = [len(row) + 1 for row in encode_plain(load_tokenizer(str(tokenizer_folder)), everything)]
    fitting = int(np.searchsorted(np.cumsum(lengths), limit, side="right"))
    meta = convert(make_request(max_tokens=limit, val_fraction=0.0))
    assert sum(meta.documents.values()) == fitting
    assert sum(meta.tokens.values()) == sum(lengths[:fitting])


def test_limit_that_falls_elsewhere_once_a_file_is_mended_gives_the_bytes_of_a_clean_run(tmp_path, make_request):
    for i, count in enumerate((20, 100, 100)):
        write_parquet(tmp_path / "text" / f"{i}.parquet", make_texts(count, seed=i))
    convert(make_request(out=tmp_path / "clean", max_documents=150))
    whole = (tmp_path / "text" / "0.parquet").read_bytes()
    (tmp_path / "text" / "0.parquet").write_bytes(whole[:-50])
    with pytest.raises(InputError, match=r"0\.parquet"):
        convert(make_request(max_documents=150))
    (tmp_path / "text" / "0.parquet").write_bytes(whole)
    convert(make_request(max_documents=150))
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "clean")


@pytest.mark.parametrize("limit", [{"max_documents": 1000}, {"max_tokens": 10**6}])
@pytest.mark.parametrize("content", [b"", gzip.compress(b'{"text": "some words here"}\n' * 999)[:-20]])
def test_files_at_the_end_count_where_the_text_ends_before_the_limit(tmp_path, make_request, limit, content):
    """They were taken for files behind the limit: exit code 0 without a word, and nothing in meta.json."""
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(40))
    (tmp_path / "text" / "b.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.jsonl\.gz"):
        convert(make_request(**limit))
    meta = convert(make_request(skip_bad_files=True, **limit))
    assert list(meta.left_out) == ["b.jsonl.gz"]


def test_files_behind_a_limit_that_is_reached_are_no_concern(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", make_texts(40))
    (tmp_path / "text" / "b.jsonl").write_bytes(b"")
    assert not convert(make_request(max_documents=30)).left_out


def rows_of(name: str, good: int, bad: int) -> bytes:
    """Good rows, every third behind a bad one; then bad ones."""
    if name == "a.csv":
        between, row, head = "x,y,z\n", "row {0},{0}\n", "text,n\n"
    else:
        between, row, head = '{"text": null}\n', '{{"text": "row {0}"}}\n', ""
    lines = [between * (i % 3 == 0) + row.format(i) for i in range(good)]
    return (head + "".join(lines) + between * bad).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
@pytest.mark.parametrize(("limit", "skipped"), [(1, 1), (3, 1), (4, 2), (10, 4), (11, 504)])
def test_rows_behind_a_limit_are_not_counted(tmp_path, make_request, name, limit, skipped):
    """All bad rows of the last batch were, a thousand of them where nobody had asked for more documents."""
    (tmp_path / "text").mkdir()
    content = rows_of(name, 10, 500)
    (tmp_path / "text" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    meta = convert(make_request(max_documents=limit, val_fraction=0.0, seq_len=2))
    assert sum(meta.documents.values()) == min(limit, 10)
    assert sum(meta.skipped.values()) == skipped


def test_rows_behind_a_limit_of_tokens_are_not_counted(tmp_path, make_request):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.jsonl").write_bytes(rows_of("a.jsonl", 10, 500))
    found = []
    for limit in (6, 30, 49, 10**6):
        meta = convert(make_request(out=tmp_path / str(limit), max_tokens=limit, val_fraction=0.0, seq_len=2))
        documents = sum(meta.documents.values())
        found.append((documents, sum(meta.skipped.values())))
    assert found[-1] == (10, 504) and 0 < found[0][0] < 10
    assert all(skipped == (documents + 2) // 3 for documents, skipped in found[:-1])


def test_lines_that_end_documents_behind_a_limit_are_not_counted(tmp_path, make_request):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("<|endoftext|>\n".join(f"story {i}\n" for i in range(40)))
    for limit, ends in ((5, 5), (39, 39), (40, 39), (50, 39)):
        meta = convert(make_request(out=tmp_path / str(limit), max_documents=limit, val_fraction=0.0, seq_len=4))
        assert (sum(meta.documents.values()), meta.separators) == (min(limit, 40), ends)


def test_rows_of_a_csv_are_named_by_their_number_in_the_file(tmp_path, make_request):
    """Rows behind one with too many values were numbered without that."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.csv").write_text("text,n\na,1\nx,y,z\n,2\nb,3\n  ,4\nx,y,z\nc,5\n,6\n")
    meta = convert(make_request(val_fraction=0.0, seq_len=2))
    names = {reason: [name.rsplit(" ", 1)[1] for name in names] for reason, names in meta.skipped_examples.items()}
    assert names == {"bad_csv": ["1", "5"], "empty": ["2", "7"], "blank": ["4"]}
