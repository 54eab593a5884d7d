"""What all tests share."""

import atexit
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
if not os.path.exists("/dev/nvidiactl"):  # with a GPU the kernels run there
    os.environ.setdefault("TRITON_INTERPRET", "1")  # on the CPU; read when Triton is first imported

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def signals_of_this_test() -> Iterator[None]:
    """A start puts its own handlers in the place of Python's; the next test gets Python's again."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def loader_workers_of_this_test() -> Iterator[None]:
    """A loader with workers that is cleared in a later test, just as that one kills a worker of its own, hangs: torch
    raises the worker's death wherever the process is, also where it holds the lock of a queue.
    """
    yield
    if multiprocessing.active_children():
        gc.collect()


@pytest.fixture(autouse=True)
def shared_memory_of_this_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Streaming closes its shared memory when the process ends: a dozen descriptors a dataset, hundreds of datasets.

    A look at all objects of the process takes a second, so only the test that imports Streaming pays for one.
    """
    made: list = []
    if (module := sys.modules.get("streaming.base.shared.memory")) is not None:
        begin = module.SharedMemory.__init__

        def note(memory, *args, **settings) -> None:
            begin(memory, *args, **settings)
            made.append(memory)

        monkeypatch.setattr(module.SharedMemory, "__init__", note)
    yield
    if module is None and (imported := sys.modules.get("streaming.base.shared.memory")) is not None:
        made += [found for found in gc.get_objects() if type(found) is imported.SharedMemory]
    if made:
        gc.collect()  # arrays that look into it
    for memory in made:
        atexit.unregister(memory.cleanup)
        with contextlib.suppress(BufferError):  # an array still looks into it
            memory.cleanup()
            memory.created_shms.clear()  # or a second cleanup would unlink what another process has under that name


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where Triton's kernels run here: a GPU, or the CPU in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    import numpy
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if numpy.lib.NumpyVersion(numpy.__version__) >= "2.5.0":
        pytest.skip("Triton's interpreter does not run with numpy 2.5 or newer, and there is no GPU")
    return "cpu"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and GPT-2's tokenizer; beside the repository where there is one, or where MOE_SHARED_DATA says."""
    folder = Path(os.environ.get("MOE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "fineweb").is_dir():
        pytest.skip("no sample data (set MOE_SHARED_DATA to a folder with fineweb/ and gpt2/)")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, a converted dataset (`data`) and a configuration (`tiny.yaml`) for it."""
    import subprocess
    import sys

    from tests.tiny import tiny_config, write_config, write_text, write_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    text = write_text(folder / "text.jsonl")
    write_tokenizer(folder / "tokenizer", text)
    command = [sys.executable, str(ROOT / "convert/fineweb_to_mds.py"), "--dataset", str(text)]
    command += ["--tokenizer", str(folder / "tokenizer"), "--seq-len", "32", "--val-fraction", "0.05"]
    command += ["--out", str(folder / "data"), "--workers", "1"]
    subprocess.run(command, check=True, capture_output=True)
    write_config(folder / "tiny.yaml", tiny_config(folder))
    return folder


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program at all is found, so no C++ compiler either."""
    from torch._inductor import config, cpp_builder

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": (None, "g++")}):
        yield
    cpp_builder.cpp_compiler_search.cache_clear()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an s3 server on loopback."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[dev]'")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://NAME of an empty bucket, reachable by what this test starts."""
    import boto3

    import moe.common.s3

    moe.common.s3._client.cache_clear()
    for name, value in {
        "S3_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"b{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return f"s3://{name}"
