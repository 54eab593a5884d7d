"""What is replaced in Streaming is written against one version of it: another one has to be read before it is used."""

import hashlib
import inspect
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from streaming import Stream, StreamingDataset
from streaming.base.dataset import _Iterator

import moe
from moe.data.read.dataset import TokenDataset
from moe.data.read.shared_prefix import with_a_free_number

READ = {  # what TokenDataset replaces, calls or counts on, as it was read
    "StreamingDataset.__init__": "34032a553e3c",
    "StreamingDataset.__iter__": "6457c4cfbae0",
    "StreamingDataset._get_work": "b44aef7d7bfd",
    "StreamingDataset._each_sample_id": "78e2aed24cff",
    "StreamingDataset._prepare_thread": "51ca7defcb59",
    "StreamingDataset._ready_thread": "7d83095a9f36",
    "StreamingDataset._resume": "308faccca0ea",
    "StreamingDataset._resume_incr_epoch": "401d17537fb8",
    "StreamingDataset.state_dict": "f43fd0324bba",
    "StreamingDataset.prepare_shard": "0aebbfc3c71c",
    "StreamingDataset._evict_coldest_shard": "6a59f5f042e3",
    "StreamingDataset.resample_streams": "0f2bf8c08cdb",
    "Stream.get_shards": "6d6f4b3a6363",
    "_Iterator.exit": "c045919ed781",
    "_Iterator.on_exit": "769d8b76660f",
}


def print_of(part) -> str:
    return hashlib.sha256(inspect.getsource(part).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", READ)
def test_streamings_own_is_what_it_was_when_it_was_read(name):
    owner, _, part = name.partition(".")
    found = getattr({"StreamingDataset": StreamingDataset, "Stream": Stream, "_Iterator": _Iterator}[owner], part)
    assert print_of(found) == READ[name], f"{name} of streaming {version('mosaicml-streaming')} is another one; read it"


def test_what_holds_eight_bytes_a_sample_is_not_made(token_folder):
    settings = {"split": "train", "batch_size": 2, "num_canonical_nodes": 1}
    of_this_folder = partial(TokenDataset, seq_len=16, vocab_size=300, local=str(token_folder), **settings)
    dataset = with_a_free_number(of_this_folder)
    assert type(dataset.spanner).__module__ == "moe.data.read.spans"
    assert [dataset.spanner[i] for i in (0, 229)] == [(0, 0), (2, 229 - sum(len(s) for s in dataset.shards[:2]))]
    with pytest.raises(IndexError, match="sequence 230 of 230"):
        dataset.spanner[230]
    from streaming.base import dataset as stock

    assert stock.Spanner.__module__.startswith("streaming."), "stock's datasets keep theirs"


ASKED_FOR = """
import sys, moe.data.read.loader, streaming
heavy = {"streaming.text", "streaming.vision", "streaming.multimodal", "torchvision"} & set(sys.modules)
assert not heavy, heavy
assert streaming.text.StreamingC4.__module__ == "streaming.text.c4" and "torchvision" not in sys.modules
import streaming.vision
assert streaming.vision.StreamingImageNet is streaming.vision.imagenet.StreamingImageNet
try:
    streaming.nothing
except AttributeError:
    print("fine")
"""


def test_its_datasets_for_text_and_pictures_are_imported_only_when_asked_for():
    """They are half of the time that a reader takes to start."""
    done = subprocess.run([sys.executable, "-c", ASKED_FOR], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_one_file_imports_it():
    files = [path for path in Path(moe.__file__).parent.rglob("*.py") if path.name != "stock.py"]
    own = [path.name for path in files if re.search(r"^\s*(from|import) streaming\b", path.read_text(), re.MULTILINE)]
    assert files and own == []
