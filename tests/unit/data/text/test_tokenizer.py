import contextlib
import json
import shutil
import socket
from types import SimpleNamespace

import pytest

from moe.common.errors import InputError
from moe.data import load_tokenizer, tokenizer_fingerprint
from moe.data.text.encoders import HARD
from moe.data.text.plain_ids import encode_plain, plain_json
from moe.data.text.tokenizer import PROBES, token_bytes, token_dtype, vocab_size


def changed(folder, out, change, name="tokenizer.json"):
    shutil.copytree(folder, out)
    spec = json.loads((out / name).read_text())
    change(spec)
    (out / name).write_text(json.dumps(spec))
    return str(out)


def test_fingerprint_is_that_of_the_content_not_of_the_folder(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path / "copy")
    one, other = load_tokenizer(str(tokenizer_folder)), load_tokenizer(str(tmp_path / "copy"))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["model"]["merges"].reverse(),
        lambda spec: spec["pre_tokenizer"].update(use_regex=False),
        lambda spec: spec["added_tokens"].append({**spec["added_tokens"][0], "id": 400, "content": "<|pad|>"}),
    ],
)
def test_fingerprint_changes_with_merges_splitting_and_added_tokens(tokenizer_folder, tmp_path, change):
    other = load_tokenizer(changed(tokenizer_folder, tmp_path / "other", change))
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(load_tokenizer(str(tokenizer_folder)))


def test_vocabulary_counts_added_tokens(tokenizer_folder, tmp_path):
    def add(spec):
        spec["added_tokens"].append({**spec["added_tokens"][0], "id": 400, "content": "<|pad|>"})

    tokenizer = load_tokenizer(changed(tokenizer_folder, tmp_path / "other", add))
    assert vocab_size(tokenizer) == 401


def test_ids_need_two_bytes_up_to_65536_and_four_beyond():
    assert [token_dtype(size) for size in (50257, 65536, 65537)] == ["uint16", "uint16", "uint32"]


def test_special_tokens_leave_the_encoders_spec_and_others_stay(tokenizer_folder, tmp_path):
    def add(spec):
        word = {**spec["added_tokens"][0], "id": 400, "content": "fox jumps", "special": False}
        spec["added_tokens"].append(word)

    tokenizer = load_tokenizer(changed(tokenizer_folder, tmp_path / "other", add))
    spec = plain_json(tokenizer)
    assert spec is not None
    assert [token["content"] for token in json.loads(spec)["added_tokens"]] == ["fox jumps"]


def test_tokenizer_without_eos_is_refused_with_the_mend(tokenizer_folder, tmp_path):
    """F4: transformers 5 writes no special_tokens_map.json."""

    def drop(config):
        config.pop("eos_token")

    folder = changed(tokenizer_folder, tmp_path / "other", drop, "tokenizer_config.json")
    (tmp_path / "other" / "special_tokens_map.json").unlink(missing_ok=True)  # transformers 5 writes none
    with pytest.raises(InputError, match=r'no EOS token.*add "eos_token" to its tokenizer_config\.json'):
        load_tokenizer(folder)


def test_folder_without_a_tokenizer_is_named_with_what_it_holds(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(InputError, match=r"cannot be loaded: the folder holds notes\.md; it needs a tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_code_in_a_tokenizer_repository_is_never_run(tokenizer_folder, tmp_path):
    def hook(config):
        config["tokenizer_class"] = "Evil"
        config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}

    folder = changed(tokenizer_folder, tmp_path / "other", hook, "tokenizer_config.json")
    witness = tmp_path / "ran"
    (tmp_path / "other" / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass Evil: pass\n")
    with contextlib.suppress(InputError):
        load_tokenizer(folder)
    assert not witness.exists()


def test_bytes_of_tokens_add_up_to_the_text_whatever_it_is(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    sizes = token_bytes(tokenizer)
    assert len(sizes) == vocab_size(tokenizer) and sizes[tokenizer.eos_token_id] == 0
    for text in (*PROBES, *HARD):
        assert sum(sizes[token] for token in encode_plain(tokenizer, [text])[0]) == len(text.encode()), text


def test_bytes_of_gpt2s_tokens_add_up_to_the_text(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "gpt2"))
    sizes = token_bytes(tokenizer)
    for text in (*PROBES, *HARD):
        assert sum(sizes[token] for token in encode_plain(tokenizer, [text])[0]) == len(text.encode()), text


def test_bytes_of_sentencepiece_like_tokens_add_up_and_other_tokenizers_have_none():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 0, "\u2581the": 1, "\u2581": 2, "s": 3, **{f"<0x{byte:02X}>": 4 + byte for byte in range(256)}}
    backend = Tokenizer(models.BPE(words, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    sizes = token_bytes(tokenizer)
    text = " s\u00e9 \u4f60"
    assert sum(sizes[token] for token in encode_plain(tokenizer, [text])[0]) == len(text.encode())
    assert (sizes[0], sizes[1]) == (0, 4)
    backend.decoder = decoders.WordPiece()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")) is None


def no_listener() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_hub_that_cannot_be_reached_is_one_message_after_two_tries(monkeypatch, capfd):
    """Its own client tries for 47 seconds, with two lines for each try."""
    address, slept = no_listener(), []
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr("moe.data.text.tokenizer_hub.time", SimpleNamespace(sleep=slept.append))
    with pytest.raises(InputError, match=rf"'nobody/none' cannot be loaded: .*\({address} cannot be reached: \w+\)"):
        load_tokenizer("nobody/none")
    assert slept == [1] and capfd.readouterr().err.count("\n") == 1


def test_a_tokenizer_that_is_cached_needs_no_hub(monkeypatch, tokenizer_folder, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", no_listener())
    monkeypatch.setattr("moe.data.text.tokenizer_hub.time", SimpleNamespace(sleep=lambda seconds: None))
    from transformers import AutoTokenizer

    asked, plain = [], AutoTokenizer.from_pretrained

    def from_cache(name, **settings):
        asked.append((name, settings["local_files_only"]))
        return plain(str(tokenizer_folder), **settings)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_cache)
    assert load_tokenizer("nobody/none").eos_token_id is not None
    assert asked == [("nobody/none", True)]


def test_a_name_that_is_no_repository_is_asked_of_nobody(monkeypatch):
    def ask(*args, **settings):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.utils.get_session", ask)
    for name in ("/no/such/folder", "./none", "a/b/c"):
        with pytest.raises(InputError, match="cannot be loaded"):
            load_tokenizer(name)
