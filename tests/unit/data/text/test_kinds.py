"""Every kind of file gives the same documents and ids, read in little memory, and names what is wrong with it."""

import csv
import gzip
import io
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from moe.common.errors import InputError
from moe.data.text import json_array, planning
from moe.data.text.complete import Quotes, parquet_error
from moe.data.text.files import SourceFile, kind_of
from moe.data.text.planning import plan_units
from moe.data.text.reading import read_batches
from moe.data.text.rows import Skipped, clean
from moe.data.write.convert import convert
from tests.unit.data.conftest import make_texts

TEXTS = [*make_texts(30), 'a "quoted", text\nover two lines\r\nand a third', "ünï — 你好"]
ROWS = [{"id": f"n{i}", "other": i, "text": text} for i, text in enumerate(TEXTS)]


def zst(content):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as packed:
        packed.write(content)
    return out.getvalue().to_pybytes()


def table(delimiter):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "other", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def arrow(open_writer):
    out = pa.BufferOutputStream()
    part = pa.RecordBatch.from_pylist(ROWS)
    with open_writer(out, part.schema) as writer:
        writer.write(part.slice(0, 20))
        writer.write(part.slice(20))
    return out.getvalue().to_pybytes()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CONTENTS = {
    "a.jsonl": LINES,
    "a.json": LINES,
    "a.jsonl.gz": gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]),
    "a.jsonl.zst": zst(LINES[:500]) + zst(LINES[500:]),
    "b.json": json.dumps(ROWS, indent=2).encode(),
    "a.csv": table(","),
    "a.csv.gz": gzip.compress(table(",")),
    "a.tsv": table("\t"),
    "a.tsv.gz": gzip.compress(table("\t")),
    "a.arrow": arrow(pa.ipc.new_stream),
    "b.arrow": arrow(pa.ipc.new_file),
}


def documents(folder, name, content, text_column="text", skipped=None, **how):
    """(text, id) of a file's documents, read in all of its units."""
    (folder / name).write_bytes(content)
    file = SourceFile(name, str(folder / name), kind_of(name), len(content), "1")
    units, bad = plan_units([file], text_column)
    if bad:
        raise bad[0]
    found = []
    for unit in units:
        for batch in read_batches(unit, text_column, **how):
            texts, ids, _ = clean(batch, file=name, skipped=Skipped() if skipped is None else skipped)
            found += zip(texts.to_pylist(), [None] * len(texts) if ids is None else ids.to_pylist(), strict=True)
    return [(text, key.decode() if isinstance(key, bytes) else key) for text, key in found]


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_gives_the_same_documents_and_ids(tmp_path, name):
    """A8: the kinds that were left out are read."""
    assert documents(tmp_path, name, CONTENTS[name]) == [(row["text"], row["id"]) for row in ROWS]


@pytest.mark.parametrize("name", [name for name in CONTENTS if name != "a.json"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    """A9: the mark of UTF-8 is removed, wherever it stands at the front of a file of text."""
    if name in ("a.csv", "b.json", "a.jsonl"):
        found = documents(tmp_path, name, b"\xef\xbb\xbf" + CONTENTS[name])
        assert found == [(row["text"], row["id"]) for row in ROWS]
    assert documents(tmp_path, "a.txt", b"\xef\xbb\xbftext\r\n") == [("text\r\n", None)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_packed_text_is_that_of_the_plain_file(tmp_path, name):
    """A8: txt.gz and txt.zst."""
    content = "\n\n".join(TEXTS * 200).encode()
    pack = {"a.txt": bytes, "a.txt.gz": gzip.compress, "a.txt.zst": zst}[name]
    found = documents(tmp_path, name, pack(content))
    assert "".join(text for text, _ in found).encode() == content and len(found) > 3


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.zst", "a.csv.gz", "a.txt.gz"])
def test_a_packed_file_that_is_cut_short_is_named(tmp_path, name):
    content = CONTENTS.get(name) or (zst if name.endswith("zst") else gzip.compress)(LINES * 50)
    with pytest.raises(InputError, match=rf"{name}: cannot be read to its end"):
        documents(tmp_path, name, content[: len(content) // 2])


def test_an_array_of_any_size_of_object_is_read_through_small_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK_BYTES", 7)
    rows = [{"text": "é" * size, "id": size} for size in (1, 50, 3, 200)]
    assert documents(tmp_path, "a.json", json.dumps(rows, ensure_ascii=False).encode()) == [
        ("é" * row["id"], str(row["id"])) for row in rows
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[{"text": "a"}, {"text"', "not a readable JSON array"),
        (b'[{"text": "a"} {"text": "b"}]', "where a comma"),
        (b'[{"text": "a"}] []', "more after the array's end"),
        (b'[{"body": "a"}]', "no column 'text'; there are body"),
        (b"[1, 2]", "not JSON objects"),
        (b'{\n "text": "a"\n}\n', "`jq -c .` makes jsonl"),
    ],
)
def test_a_json_file_that_is_no_array_of_texts_is_named(tmp_path, content, told):
    with pytest.raises(InputError) as caught:
        documents(tmp_path, "a.json", content)
    assert told in str(caught.value)


def test_an_array_above_the_limit_is_refused_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "MOST_BYTES", 20)
    with pytest.raises(InputError, match=r"a\.json: a JSON array of .*jq -c '\.\[\]'"):
        documents(tmp_path, "a.json", CONTENTS["b.json"])
    assert len(documents(tmp_path, "b.json", LINES)) == len(ROWS)  # lines have no limit


def test_lines_in_a_json_file_are_cut_like_jsonl(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "UNIT_BYTES", 300)
    assert documents(tmp_path, "a.json", LINES) == [(row["text"], row["id"]) for row in ROWS]


def test_rows_of_csv_that_are_not_whole_are_counted(tmp_path):
    """Ragged rows, empty cells and bytes that are no UTF-8 are counted, none is lost in silence."""
    skipped = Skipped()
    content = b"text,id\ngood,1\nshort\na,b,c\n,4\n\xff\xfe bad,5\nlast,6\n"
    assert documents(tmp_path, "a.csv", content, skipped=skipped) == [("good", "1"), ("last", "6")]
    assert skipped.counts == {"bad_csv": 2, "empty": 1, "invalid_utf8": 1}


def parquet(texts, **how):
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), out, **how)
    return out.getvalue().to_pybytes()


STREAM, FILE = CONTENTS["a.arrow"], CONTENTS["b.arrow"]
TWO = "several files one after the other"


def test_a_footer_that_names_no_place_of_a_column_is_damaged():
    """As the fuzzer of tests/chaos/foreign.py made one; pyarrow opens it."""
    column = SimpleNamespace(dictionary_page_offset=None, data_page_offset=0, path_in_schema="text")
    group = SimpleNamespace(num_columns=1, column=lambda number: column)
    metadata = SimpleNamespace(num_row_groups=1, row_group=lambda number: group, serialized_size=9)
    assert "no place for column 'text'" in parquet_error(io.BytesIO(b"PAR1"), metadata)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.arrow", STREAM[:-8], "no end mark"),
        ("a.arrow", STREAM * 2, TWO),
        ("a.arrow", STREAM + b"junk", "more bytes after"),
        ("a.arrow", FILE * 2, TWO),
        ("a.parquet", parquet(["a", "b"]) + parquet(["c", "d"]), TWO),
        ("a.parquet", parquet(["a", "b"], write_page_index=True) + parquet(["c", "d"], write_page_index=True), TWO),
    ],
)
def test_rows_behind_a_table_are_not_left_out_in_silence(tmp_path, name, content, told):
    """`cat a b > c` of tables, and a stream that was not closed: readers give some of the rows, and no error."""
    with pytest.raises(InputError, match=rf"{name}: .*{told}"):
        documents(tmp_path, name, content)


def test_a_parquet_file_with_a_page_index_is_read(tmp_path):
    content = parquet(["a", "b"] * 500, write_page_index=True, row_group_size=100)
    assert len(documents(tmp_path, "a.parquet", content)) == 1000


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (b'"say \\"hi\\"",1\nlast,2\n', "line 2: a quote inside of a quoted value"),
        (b'good,0\n"a"b,1\nlast,2\n', "line 3: a quote inside of a quoted value"),
        (b'good,0\n"open,1\nlast,2\n', "ends inside a quote, which line 3 opens"),
        (b'good,0\nx,"1\nmid,2\n"y",3\n', "line 3: a quote inside of a quoted value"),
        (b'good,0\n"open,1\nmid,2\n', "ends inside a quote, which line 3 opens"),
    ],
)
def test_a_quote_that_is_none_is_named_by_its_line(tmp_path, rows, told):
    """Readers drop the quote and go on, or take rows together."""
    with pytest.raises(InputError, match=rf"a\.csv: .*{told}"):
        documents(tmp_path, "a.csv", b"text,id\n" + rows)
    good = b'\xef\xbb\xbf"text",id\r\n"a ""b"", c\nd",1\r\n5" disk,2\r\na""b,3\r\n"""",4\r\n"end","5"'
    found = documents(tmp_path, "b.csv", good)
    for content in (b"text,id\n" + rows, good):  # cut at any byte
        quotes = Quotes(io.BytesIO(content), ",")
        while quotes.read(1):
            pass
        assert (content is good) == (quotes.error is None)
    assert found == [('a "b", c\nd', "1"), ('5" disk', "2"), ('a""b', "3"), ('"', "4"), ("end", "5")]


def test_a_text_that_is_named_twice_is_counted(tmp_path):
    """A JSON object with two texts: a parser takes the last and says nothing."""
    skipped = Skipped()
    lines = [
        b'{"text": "a", "text": "b"}',
        b'{"text": "say \\"text\\"", "kind": "text", "n": {"text": 1}}',
        b'{"text": "c", "n": NaN}',
    ]
    found = documents(tmp_path, "a.jsonl", b"\r\n".join(lines), skipped=skipped)
    assert found == [('say "text"', None), ("c", None)]
    assert skipped.counts == {"duplicate_key": 1}
    array = b"[" + b",".join(lines) + b"]"
    assert documents(tmp_path, "a.json", array) == found


@pytest.mark.parametrize(
    ("column", "line"),
    [
        ("content", r'{"content": "a", "c\u006Fntent": "b"}'),
        ("content", r'{"\u0063ontent": "a", "\u0063ontent": "b"}'),
        ("größe", '{"größe": "a", "größe": "b"}'),
        ("größe", r'{"größe": "a", "gr\u00f6\u00DFe": "b"}'),
        ("本文😀", r'{"本文😀": "a", "\u672c\u6587\ud83d\uDE00": "b"}'),
        ("a/b", r'{"a/b": "a", "a\u002fb": "b"}'),
        ("doc.text", '{"doc": {"text": "a"}, "doc": {"text": "b"}}'),
        ("doc.text", '{"doc.text": "a", "doc.text": "b"}'),
    ],
)
def test_a_text_that_is_named_twice_in_any_spelling_is_counted(tmp_path, column, line):
    r"""Keys beyond ASCII and keys with escapes, as in {"text": .., "te\u0078t": ..}."""
    once = json.dumps({column: f'b "{column}" "{column}"'})
    for name, content in (("a.jsonl", f"{line}\n{once}\n"), ("a.json", f"[{line}, {once}]")):
        skipped = Skipped()
        found = documents(tmp_path, name, content.encode(), text_column=column, skipped=skipped)
        assert skipped.counts == {"duplicate_key": 1} and len(found) == 1


def test_a_nested_column_is_read_or_refused_by_name(tmp_path):
    """C2: doc.text."""
    rows = [{"doc": {"text": "one", "n": 1}, "id": "a"}, {"doc": None, "id": "b"}, {"doc": {"text": "two"}, "id": "c"}]
    wanted = [("one", "a"), ("two", "c")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    feather.write_feather(pa.Table.from_pylist(rows), tmp_path / "x.arrow", compression="uncompressed")
    lines = "\n".join(map(json.dumps, rows)).encode()
    for name in ("x.parquet", "x.arrow"):
        assert documents(tmp_path, name, (tmp_path / name).read_bytes(), "doc.text") == wanted
    assert documents(tmp_path, "x.jsonl", lines, "doc.text") == wanted
    assert documents(tmp_path, "x.json", json.dumps(rows).encode(), "doc.text") == wanted
    for name, wrong, told in (
        ("x.parquet", "doc.body", r"no column 'doc\.body'; there are doc\.text, doc\.n, id"),
        ("x.parquet", "doc", "column 'doc' is struct<"),
        ("x.arrow", "doc.n", "column 'doc.n' is int64, not text"),
        ("x.jsonl", "doc.body", r"no column 'doc\.body'; there are doc, id"),
    ):
        with pytest.raises(InputError, match=told):
            documents(tmp_path, name, (tmp_path / name).read_bytes(), wrong)


def test_a_column_with_a_dot_in_its_name_is_that_column(tmp_path):
    pq.write_table(pa.table({"doc.text": ["a"], "doc": [{"text": "b"}]}), tmp_path / "x.parquet")
    assert documents(tmp_path, "x.parquet", (tmp_path / "x.parquet").read_bytes(), "doc.text") == [("a", None)]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.csv"])
def test_a_text_column_that_occurs_twice_is_refused_by_name(tmp_path, name):
    """C3: which of the two would be the text?"""
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["i"])], names=["text", "text", "id"])
    if name == "x.parquet":
        pq.write_table(twice, tmp_path / name)
    elif name == "x.arrow":
        with pa.ipc.new_file(str(tmp_path / name), twice.schema) as writer:
            writer.write(twice)
    else:
        (tmp_path / name).write_text("text,text,id\na,b,i\n")
    with pytest.raises(InputError, match="column 'text' occurs 2 times"):
        documents(tmp_path, name, (tmp_path / name).read_bytes())


def test_an_id_that_is_no_utf8_names_its_document(tmp_path, make_request):
    """C4: the bytes of an id decide, whatever they are."""
    (tmp_path / "text").mkdir()
    ids = pa.array([b"\xff%d" % i for i in range(40)]).view(pa.string())
    texts = [*make_texts(39), None]
    pq.write_table(pa.table({"text": texts, "id": ids}), tmp_path / "text" / "a.parquet")
    meta = convert(make_request(seq_len=8, val_fraction=0.3))
    assert meta.id_column == "id" and sum(meta.documents.values()) == 39
    assert meta.skipped_examples["null"] == ["\ufffd39"]


def test_a_list_of_strings_is_no_text(tmp_path):
    pq.write_table(pa.table({"text": [["a", "b"]]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"column 'text' is list<\w+: string>, not text"):
        documents(tmp_path, "x.parquet", (tmp_path / "x.parquet").read_bytes())


def test_ids_of_every_json_kind_are_text_or_none(tmp_path):
    """A11: numbers of any size and kind; NaN, lists and lone surrogates name nothing."""
    ids = [b"1", b"1" + b"0" * 30, b"1.5", b"true", b"NaN", b"[1]", b"null", b'"\\ud800"', b'""']
    lines = [b'{"text": "a", "id": %s}' % key for key in ids] + [b'{"text": "a", "id": %s}' % (b"9" * 5000)]
    skipped = Skipped()
    found = documents(tmp_path, "a.jsonl", b"\n".join(lines), skipped=skipped)
    assert [key for _, key in found] == ["1", "1" + "0" * 30, "1.5", "True", None, None, None, None, ""]
    assert skipped.counts == {"bad_json": 1}  # Python reads no number of more than 4,300 digits


def test_a_column_name_that_is_no_utf8_names_the_file(tmp_path):
    """C8: what pyarrow raises of a broken schema is one message, in every kind of table."""
    parquet, stream = pa.BufferOutputStream(), pa.BufferOutputStream()
    rows = pa.table({"text": ["a b"], "other-name": ["c"]})
    pq.write_table(rows, parquet)
    with pa.ipc.new_stream(stream, rows.schema) as writer:
        writer.write_table(rows)
    for name, content in (("a.parquet", parquet), ("b.arrow", stream)):
        broken = content.getvalue().to_pybytes().replace(b"other-name", b"other\xff\xb4ame")
        with pytest.raises(InputError, match=rf"{name}: not a readable .* file \('utf-8' codec"):
            documents(tmp_path, name, broken)


def test_a_csv_row_that_cannot_be_told_is_one_message(tmp_path, capfd):
    """C8: of another number of values and no UTF-8: pyarrow printed a traceback and named another cause."""
    content = b"text,id\nabc,1\nbad\xb4,2,3\nok,4\n"
    with pytest.raises(InputError, match=r"a\.csv: a row with another number of .* not valid UTF-8 either .*iconv"):
        documents(tmp_path, "a.csv", content)
    assert capfd.readouterr().err == ""
    skipped = Skipped()
    content = b"text,id\nabc,1\nbad,2,3\nno\xb4,4\n"
    assert documents(tmp_path, "a.csv", content, skipped=skipped) == [("abc", "1")]
    assert skipped.counts == {"bad_csv": 1, "invalid_utf8": 1}
