"""What the bytes of a hub's file are held against."""

import hashlib
import json
import random

import pytest

from moe.common.errors import InputError
from moe.data.hub_proof import verified_against
from moe.data.meta import read_meta
from moe.data.text import planning
from moe.data.text.streams import open_source
from moe.data.text.tables import open_parquet
from moe.data.write.convert import convert
from tests.unit.data import hub_server
from tests.unit.data.conftest import make_texts
from tests.unit.data.hub.some_set import BASE, source, stream
from tests.unit.data.hub_server import Hub


def test_a_file_of_another_size_than_listed_is_named_at_once(serve, folder):
    """C24: a range is held against the whole size."""
    (folder / "a.txt").write_bytes(bytes(5000))
    serve()
    with pytest.raises(InputError, match=r"a\.txt: the listing says 4000 bytes, the server 5000"):
        stream(4000).read()


def test_a_range_of_another_place_does_not_count(serve, folder, monkeypatch):
    """C24: bytes of the right number from the wrong place, as the answer's own header says."""
    content = bytes(range(250)) * 8
    (folder / "a.txt").write_bytes(content)
    wrong = {"Content-Range": "bytes 7-1006/2000"}
    server = serve(headers=lambda path, count: wrong if count == 1 else {})

    def elsewhere(handler, status, body, headers=None, cut=None, send=Hub.send):
        first = status == 206 and server.requests[f"/{BASE}/a.txt"] == 1
        send(handler, status, content[7:1007] if first else body, headers, cut)

    monkeypatch.setattr(Hub, "send", staticmethod(elsewhere))
    assert stream(2000).readall() == content


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag"])
def test_a_file_that_changes_while_it_is_read_is_named(serve, folder, header):
    """C24: its ETag is that of its first bytes."""
    (folder / "a.txt").write_bytes(bytes(5000))
    serve(headers=lambda path, count: {header: '"one"' if count < 3 else '"two"'})
    with pytest.raises(InputError, match=r"a\.txt: the file changed while it was read \(ETag one, then two\)"):
        stream(5000).readall()


def test_the_files_own_etag_counts_where_two_servers_hand_it_out(serve, folder):
    """C24: a CDN's own tags differ, the hub's do not."""
    (folder / "a.txt").write_bytes(bytes(5000))
    serve(headers=lambda path, count: {"ETag": f'"{count}"', "X-Linked-Etag": '"same"'})
    assert stream(5000).readall() == bytes(5000)


def test_a_file_read_from_front_to_end_is_held_against_the_hubs_sha256(serve, folder):
    """C24: a byte that a proxy changed."""
    (folder / "a.txt").write_bytes(bytes(4500))
    serve(listing=("lfs",))
    (file,) = source().files
    assert file.size == 4500
    with open_source(file, block_bytes=1000) as reader:
        assert reader.read() == bytes(4500)
    assert verified_against(file.path, file.listed) == "sha256"
    (folder / "a.txt").write_bytes(bytes(4499) + b"\1")
    with open_source(file, block_bytes=1000) as reader, pytest.raises(InputError, match=r"a\.txt: its bytes are not"):
        reader.read()


def test_a_conversion_of_a_changed_file_stops(serve, folder, make_request):
    """C24: meta.json says what each file was held against."""
    (folder / "a.txt").write_text("\n\n".join(make_texts(60)))
    serve(listing=("size", "lfs"), headers=lambda path, count: {})
    text = (folder / "a.txt").read_bytes()
    assert source().files[0].size == len(text)
    convert(make_request(dataset=("some/set",)))
    assert read_meta(folder.parent / "out").proofs == {"sha256": ["a.txt"]}

    def lie(handler, status, body, headers=None, cut=None, send=Hub.send):
        send(handler, status, body.replace(b"quick", b"quack"), headers, cut)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hub, "send", staticmethod(lie))
        with pytest.raises(InputError, match="its bytes are not those of the listing"):
            convert(make_request(dataset=("some/set",), out=folder.parent / "other"))


def test_a_parquet_page_that_changed_is_told_where_it_has_a_checksum(serve, folder):
    """C24: pages carry their own checksums, when they were written so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "a.parquet"
    table = pa.table({"text": make_texts(200)})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"wizards")] ^= 1
    path.write_bytes(content)
    serve()
    (file,) = source().files
    with pytest.raises(InputError, match=r"CRC|checksum"), open_parquet(file) as parquet:
        parquet.read()


def test_a_file_without_sha256_is_held_against_its_git_blob(serve, folder, make_request):
    """C24: small files are no LFS files; the README that chooses files is one of them."""
    (folder / "a.txt").write_text("\n\n".join(make_texts(60)))
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_files: a.txt\n---\n")
    serve()
    convert(make_request(dataset=("some/set",)))
    assert read_meta(folder.parent / "out").proofs == {"git blob id": ["a.txt"]}
    (file,) = source().files
    changed = bytearray((folder / "a.txt").read_bytes())
    changed[77] ^= 1
    (folder / "a.txt").write_bytes(changed)
    with open_source(file, block_bytes=1000) as reader, pytest.raises(InputError, match=r"not those of .*git blob id"):
        reader.read()

    def lie(handler, status, body, headers=None, cut=None, send=Hub.send):
        send(handler, status, body.replace(b"one\n", b"two\n"), headers, cut)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hub, "send", staticmethod(lie))
        with pytest.raises(InputError, match=r"README\.md: its bytes are not those of the listing"):
            source()


def test_a_mirror_that_does_not_say_which_files_are_lfs_gives_their_pointers_blob(serve, folder, monkeypatch):
    """C24: git's name is that of the pointer, which holds the sha256."""
    content = bytes(range(256)) * 9
    (folder / "a.txt").write_bytes(content)
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(content).hexdigest()}\nsize 2304\n"
    )
    monkeypatch.setattr(hub_server, "git_id", lambda content, plain=hub_server.git_id: plain(pointer.encode()))
    serve()
    (file,) = source().files
    for wrong in (False, True):
        if wrong:
            (folder / "a.txt").write_bytes(content[:-1] + b"?")
        with open_source(file, block_bytes=1000) as reader:
            if wrong:
                with pytest.raises(InputError, match="its bytes are not those"):
                    reader.read()
            else:
                assert reader.read() == content and verified_against(file.path, file.listed) == "git blob id"


@pytest.mark.parametrize("listing", ["lfs", "blobId"])
def test_a_file_read_in_parts_one_after_the_other_is_hashed_whole(serve, folder, listing):
    """C24: the units of a large jsonl; what is read again at their border is hashed as it came again."""
    content = bytes(random.Random(listing).randbytes(9500))
    (folder / "a.txt").write_bytes(content)
    serve(listing=("size", listing))
    (file,) = source().files

    def read(begin: int, end: int) -> None:
        with open_source(file, block_bytes=1000) as reader:
            reader.seek(begin)
            assert len(reader.read(end - begin)) == end - begin

    read(0, 3200)
    read(6100, 9500)
    assert verified_against(file.path, file.listed) is None, "a part is missing"
    read(3199, 6300)
    read(6299, 9500)
    assert verified_against(file.path, file.listed) == {"lfs": "sha256", "blobId": "git blob id"}[listing]
    read(0, 3200)
    (folder / "a.txt").write_bytes(content[:7000] + b"??" + content[7002:])
    read(3199, 6300)
    with pytest.raises(InputError, match="its bytes are not those of the listing"):
        read(6299, 9500)


def test_what_is_read_in_parts_says_so_whoever_reads_it(serve, folder, make_request, monkeypatch):
    """C24: meta.json is the same for any number of workers."""
    monkeypatch.setattr(planning, "UNIT_BYTES", 4000)
    lines = [json.dumps({"text": text}) for text in make_texts(60)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.txt").write_text("\n\n".join(make_texts(20, seed=3)))
    serve(listing=("size", "lfs"))
    convert(make_request(dataset=("some/set",)))
    assert read_meta(folder.parent / "out").proofs == {"size, ETag": ["a.jsonl"], "sha256": ["b.txt"]}
