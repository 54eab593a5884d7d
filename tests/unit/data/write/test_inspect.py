import argparse
import json
import sys
import threading

import pytest

from moe.cli import inspect
from moe.common.errors import InputError
from moe.data.read import verify
from moe.data.write.convert import convert
from moe.data.write.progress import Verifying
from tests.unit.data.conftest import make_texts, write_parquet


@pytest.fixture
def converted(tmp_path, make_request):
    write_parquet(tmp_path / "text" / "a.parquet", [*make_texts(80), "", None])
    convert(make_request())
    return tmp_path / "out"


def call(*flags):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args([str(flag) for flag in flags]))


def test_sound_dataset_is_summed_up_verified_and_shown(converted, capsys):
    assert call(converted, "--sequences", 3) == 0
    out = capsys.readouterr().out
    assert "documents    80\n" in out
    assert "skipped rows 2 (1 empty, 1 null)" in out
    assert "verified     sizes and xxh64 of all shards" in out
    assert out.count("--- train sequence") == 3
    assert inspect.BOUNDARY in out
    assert "<|endoftext|>" not in out.replace(inspect.BOUNDARY, "").split("sequence 0 of")[1][:40]


def test_shown_sequences_are_the_text(converted, capsys):
    call(converted, "--sequences", 1, "--full")
    shown = capsys.readouterr().out.split("document ends\n")[1].split(inspect.BOUNDARY)
    texts = make_texts(80)
    assert len(shown) > 1
    assert all(piece in texts for piece in shown[1:-1])
    assert any(text.startswith(shown[-1].strip()) for text in texts)


def test_a_long_sequence_is_cut_and_the_rest_counted(converted, capsys, monkeypatch):
    monkeypatch.setattr(inspect, "SHOWN", 20)
    call(converted, "--sequences", 1, "--full")
    whole = capsys.readouterr().out.split("document ends\n")[1].rstrip("\n")
    call(converted, "--sequences", 1)
    shown = capsys.readouterr().out.split("document ends\n")[1].rstrip("\n")
    assert shown == f"{whole[:20]} ... ({len(whole) - 20:,} more characters; --full shows them)"


def test_the_former_names_of_the_flags_work_and_tell_the_present_ones(converted, capsys):
    call(converted, "--sequences", 1, "--full")
    present = capsys.readouterr()
    call(converted, "--samples", 1, "--whole")
    former = capsys.readouterr()
    assert former.out == present.out and "is called" not in present.err
    assert former.err.splitlines()[:2] == ["--samples is called --sequences now", "--whole is called --full now"]


def test_damage_is_named_and_ends_with_2(converted, capsys):
    shard = converted / "train" / "shard.00000.mds"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert call(converted, "--quick", "--sequences", 0) == 0
    assert call(converted) == 2
    assert "shard.00000.mds: its bytes changed" in capsys.readouterr().out


def test_a_number_of_sequences_below_0_is_refused(converted):
    with pytest.raises(InputError, match=r"--sequences \(-1\) must not be below 0"):
        call(converted, "--sequences", -1)


def test_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="is empty or not there"):
        call(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("something else")
    with pytest.raises(InputError, match=r"has no meta\.json"):
        call(tmp_path)


def test_other_tokenizer_is_refused(converted, tmp_path, tokenizer_folder):
    import json
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tokenizer_folder, other)
    spec = json.loads((other / "tokenizer.json").read_text())
    spec["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="is not the one these ids came from"):
        call(converted, "--tokenizer", other)


def test_module_is_light_until_it_runs():
    import subprocess

    code = "import sys; import moe.cli.inspect, moe.data; print({'torch', 'numpy', 'pyarrow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_shards_are_verified_in_parallel_with_how_far_it_is(converted, capsys, monkeypatch):
    """Each waits for the other; both are named, in their order."""
    shards = [converted / split / "shard.00000.mds" for split in ("train", "val")]
    index = json.loads((converted / "train" / "index.json").read_text())
    index["shards"] *= 2
    (converted / "train" / "index.json").write_text(json.dumps(index))
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    both = threading.Barrier(2, timeout=10)
    monkeypatch.setattr("moe.data.read.verify.PIECE_BYTES", 1 << 20)
    hashing = verify._xxh64

    def meet(place, name, progress):
        if str(place).endswith("train"):
            both.wait()
        return hashing(place, name, progress)

    monkeypatch.setattr(verify, "_xxh64", meet)
    assert call(converted) == 2
    out = capsys.readouterr().out
    assert [line.count("bytes changed") for line in out.splitlines() if line.startswith("error")] == [1, 1, 1]
    progress = Verifying(200)
    for _ in range(2):
        progress.add(50)
    assert progress._bytes_line(10.0) == " 50%  100B of 200B verified  10B/s  0:10 done, 0:10 left"
