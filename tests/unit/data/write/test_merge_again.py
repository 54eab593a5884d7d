"""A merge that is killed resumes with the shard that is not there yet."""

import pytest

from moe.data.write import merge
from moe.data.write.convert import convert
from moe.data.write.gather import gather
from moe.data.write.shards import ShardFormat
from tests.unit.data.conftest import folder_bytes, make_texts, write_parquet


@pytest.fixture
def tiny_shards(monkeypatch, tmp_path):
    """Five files, each of a few full shards and a rest."""
    monkeypatch.setitem(ShardFormat.__init__.__kwdefaults__, "size_limit", 2500)
    for number in range(5):
        write_parquet(tmp_path / "text" / f"{number}.parquet", make_texts(60, seed=number))


def cut_off(monkeypatch, request, *, after: int) -> None:
    """Converts until so many shards of rests are written."""
    add = merge.Journal.add
    written: list[str] = []

    def stop(journal, split, info):
        add(journal, split, info)
        written.append(split)
        if len(written) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(merge.Journal, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(request)


@pytest.mark.parametrize("after", [1, 3])
def test_shards_that_are_there_are_kept_and_the_bytes_are_the_same(
    tiny_shards, make_request, tmp_path, monkeypatch, capsys, after
):
    convert(make_request(out=tmp_path / "clean"))
    cut_off(monkeypatch, make_request(), after=after)
    there = {p.name: p.stat().st_ino for p in (tmp_path / "out.partial" / "merged" / "train").glob("*.mds")}
    (tmp_path / "out.partial" / "merged" / "train" / ".shard.killed").mkdir()
    packed: list[int] = []
    write = merge.ShardSequence.write
    monkeypatch.setattr(merge.ShardSequence, "write", lambda *given: packed.append(given[2]) or write(*given))
    capsys.readouterr()
    convert(make_request())
    assert "resuming the merge" in capsys.readouterr().out
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "clean")
    assert (
        len(there) > after
        and there.items() <= {p.name: p.stat().st_ino for p in (tmp_path / "out" / "train").glob("*.mds")}.items()
    )
    again = sum(packed)
    packed.clear()
    convert(make_request(overwrite=True))
    assert again == sum(packed) - after * ShardFormat(seq_len=32, dtype="uint16").samples_per_shard


def test_a_shard_that_is_not_as_it_was_written_is_packed_again(tiny_shards, make_request, tmp_path, monkeypatch):
    convert(make_request(out=tmp_path / "clean"))
    cut_off(monkeypatch, make_request(), after=3)
    last = max((tmp_path / "out.partial" / "merged" / "train").glob("*.mds"))
    last.write_bytes(last.read_bytes()[:-1])
    convert(make_request())
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "clean")


def test_rests_can_be_read_from_any_token_on(tiny_shards, make_request, monkeypatch):
    seen = []
    monkeypatch.setattr("moe.data.write.convert.gather", lambda *given: seen.append(gather(*given)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(make_request())
    layout = ShardFormat(seq_len=32, dtype="uint16")
    tokens = [t for piece in merge.rest_tokens(seen[0].rests["train"], layout) for t in piece.tolist()]
    assert len(tokens) == seen[0].rests["train"].tokens
    for skip in (0, 1, 31, len(tokens) // 2, len(tokens) - 1, len(tokens)):
        rest = [t for piece in merge.rest_tokens(seen[0].rests["train"], layout, skip=skip) for t in piece.tolist()]
        assert rest == tokens[skip:]
