"""Input that nobody wrote for us: README headers, jsonl lines, tables of any schema. Each is read or refused in one
message.

python -m tests.chaos.foreign --seconds 60       (a part of make chaos-convert)
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from pathlib import Path

PIECES = (
    "configs:", "- config_name:", "  data_files:", "  - split: train", "    path:", "  data_dir:", "  default:", "*",
    "**", "a.jsonl", "[", "]", "{", "}", "&a", "*a", "<<: *a", "!!python/object:os.system", "2024-01-01", "1e9", "null",
    "on", "\t", "'", '"', "|", ">", "? x", "---", "...", "\x00", "\x85", "\ufeff", "é", "[a-", "a/../b", "#", ": :",
)  # fmt: skip


def readme_header(drawn: random.Random) -> str:
    """Pieces of YAML in an order that makes sense now and then."""
    lines = []
    for _ in range(drawn.randint(0, 12)):
        line = " " * drawn.choice([0, 0, 2, 4]) + " ".join(drawn.choices(PIECES, k=drawn.randint(1, 4)))
        lines.append(line)
    front = drawn.choice(["configs:\n", "configs:\n- config_name: a\n  data_files:\n", "", "{configs: "])
    return f"---\n{front}" + drawn.choice(["\n", "\r\n"]).join(lines) + drawn.choice(["\n---\n", "\n---", "\n", ""])


def jsonl_line(drawn: random.Random) -> bytes:
    values = [
        "text", "", " ", None, 1, -0.0, 1e999, True, [], {}, {"text": "x"}, ["x"], "\ud800", "\x00", "é" * 50, 10**400,
    ]  # fmt: skip
    row = {drawn.choice(["text", "id", "", "TEXT"]): drawn.choice(values) for _ in range(drawn.randint(0, 3))}
    line = json.dumps(drawn.choice([row, row, row, [row], drawn.choice(values)]))
    raw = bytearray(line.encode("utf-8", "surrogatepass"))
    for _ in range(drawn.choice([0, 0, 1, 5])):
        place = drawn.randrange(len(raw) + 1)
        raw[place:place] = bytes([drawn.randrange(256)])
    return bytes(raw) + drawn.choice([b"\n", b"\n", b"\r\n", b""])


def spoil(drawn: random.Random, path: Path, share: float = 0.25) -> None:
    """In a share of the files bytes are changed, and the end is cut off half of these."""
    if drawn.random() < share:
        raw = bytearray(path.read_bytes())
        for _ in range(drawn.randint(1, 9)):
            raw[drawn.randrange(len(raw))] = drawn.randrange(256)
        path.write_bytes(raw[: drawn.choice([len(raw), drawn.randrange(len(raw))])])


def tables(drawn: random.Random, folder: Path) -> None:
    """A table of columns of any type and name, as parquet and as Arrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [
        pa.array(["a b c " * 9, None, ""]), pa.array([b"\xff\xfe", b"x", None]), pa.array([1, None, 3]),
        pa.array([["a"], [], None]), pa.array([{"text": "a"}, None, {"text": "b"}]),
        pa.array([1.5, float("nan"), None]), pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array(["x", "y", None], pa.large_string()),
        pa.array([None, None, None]), pa.array([True, False, None]), pa.array([1, 2, 3], pa.timestamp("us")),
    ]  # fmt: skip
    names = drawn.choices(["text", "id", "", "text.x", "TEXT", "é"], k=drawn.randint(1, 4))
    rows = pa.Table.from_arrays([drawn.choice(columns) for _ in names], names=names)
    rows = rows.slice(0, drawn.choice([0, 3, 3, 3]))
    pq.write_table(rows, folder / "b.parquet", row_group_size=drawn.choice([1, 3]))
    opened = drawn.choice([pa.ipc.new_file, pa.ipc.new_stream])
    with opened(str(folder / "c.arrow"), rows.schema) as writer:
        writer.write_table(rows)


def packed(drawn: random.Random, folder: Path) -> None:
    """Text in the other kinds of files that are read."""
    cells = ["text", "id", "a b c", '"', '"a, b"', "\n", "é", "\x00", "", ","]
    rows = [drawn.choice(["text,id", "id", "text\tid", "text,text"])] + [
        ",".join(drawn.choices(cells, k=drawn.randint(1, 3))) for _ in range(drawn.randint(0, 9))
    ]
    (folder / "d.csv").write_text("\n".join(rows), encoding="utf-8", newline="")
    array = [json.loads(json.dumps(drawn.choice([{"text": "a b"}, {"id": 1}, [], None, "x", 1.5]))) for _ in range(5)]
    (folder / "e.json").write_text(json.dumps(array) + drawn.choice(["", "\n", "]", "[]"]))
    (folder / "f.txt.gz").write_bytes(gzip.compress(b"some text\n\n" * drawn.randint(0, 99)))


def read_all(folder: Path) -> int:
    """Documents of a folder, read as a conversion does. Raises InputError for what is refused."""
    from moe.common.errors import InputError
    from moe.data.text.planning import plan_units
    from moe.data.text.reading import read_batches
    from moe.data.text.rows import Skipped, clean, document_hashes
    from moe.data.text.sources import resolve

    source = resolve(dataset=(str(folder),), config=None, split="train", revision=None)
    count = 0
    for unit in plan_units(source.files, "text")[0]:
        try:
            for batch in read_batches(unit, "text"):
                texts, ids, _ = clean(batch, file=unit.file.name, skipped=Skipped())
                count += len(document_hashes(texts, ids, 1))
        except InputError:
            continue
    return count


def once(drawn: random.Random, folder: Path) -> None:
    from moe.common.errors import InputError

    for path in folder.iterdir():
        path.unlink()
    (folder / "a.jsonl").write_bytes(b"".join(jsonl_line(drawn) for _ in range(20)))
    tables(drawn, folder)
    packed(drawn, folder)
    for path in sorted(folder.iterdir())[1:]:
        spoil(drawn, path)
    if drawn.random() < 0.5:
        (folder / "README.md").write_text(readme_header(drawn), encoding="utf-8")
    try:
        read_all(folder)
    except InputError as error:
        assert str(error).strip(), "a refusal without a word"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started, seed = time.monotonic(), arguments.seed
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - started < arguments.seconds:
            try:
                once(random.Random(seed), Path(folder))
            except Exception:
                print(f"seed {seed}: --seed {seed} --seconds 1 shows it again", file=sys.stderr)
                raise
            seed += 1
    print(f"{seed - arguments.seed:,} foreign inputs, each read or refused", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
