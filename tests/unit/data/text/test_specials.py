"""Text never yields a special token; one way to encode a prompt, one to decode what follows; a tokenizer.json alone."""

import json
import shutil

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moe.common.errors import InputError
from moe.data.text.encoders import HARD, Transformers, first_difference
from moe.data.text.plain_ids import decode_new, encode_plain, encode_prompt, plain_json
from moe.data.text.tokenizer import load_tokenizer, tokenizer_fingerprint

LETTERS = "abcdefghijklmnopqrstuvwxyz</>[]"


def unigram():
    pieces = ["<unk>", "<s>", "</s>", "\u2581", *LETTERS, "\u2581the"]
    backend = Tokenizer(models.Unigram([(piece, -float(len(piece) < 3)) for piece in pieces], unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


def word_level():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "ab": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend, {"eos_token": "</s>", "unk_token": "<unk>"}


def word_piece():
    vocab = {token: i for i, token in enumerate(["[UNK]", "[SEP]", *LETTERS, *("##" + c for c in LETTERS)])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    return backend, {"eos_token": "[SEP]", "unk_token": "[UNK]"}


def merged_bpe():
    vocab = {token: i for i, token in enumerate(["<unk>", "</s>", *LETTERS, "</", "s>", "th"])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("t", "h")]
    return Tokenizer(models.BPE(vocab, merges, unk_token="<unk>")), {"eos_token": "</s>", "unk_token": "<unk>"}


MAKERS = {"Unigram": unigram, "WordLevel": word_level, "WordPiece": word_piece, "BPE": merged_bpe}


def saved(folder, backend, names):
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_letters_of_eos_in_a_text_are_letters(tmp_path, kind):
    """A5: no model of tokenizers finds its special tokens in a text."""
    tokenizer = load_tokenizer(saved(tmp_path / kind, *MAKERS[kind]()))
    eos = tokenizer.eos_token
    texts = [eos, f"the {eos} ab", f"ab{eos}the", f"{eos}\n{eos}", "the ab", *HARD]
    assert tokenizer.eos_token_id in tokenizer(texts[1], add_special_tokens=False)["input_ids"]  # by itself it is found
    assert not any(tokenizer.eos_token_id in row for row in encode_plain(tokenizer, texts))
    encoder = Transformers(plain_json(tokenizer), "")
    assert first_difference(encoder, texts, encode_plain(tokenizer, texts)) is None
    ids, _ = encoder.encode(pa.array(texts, pa.large_string()))
    assert tokenizer.eos_token_id not in ids.tolist()
    assert tokenizer.bos_token_id not in ids.tolist()


def test_a_tokenizer_that_writes_eos_all_the_same_is_refused(tmp_path):
    """A5: an unknown token that is EOS ends a document at every character it does not know."""
    backend = Tokenizer(models.WordLevel({"</s>": 0, "the": 1}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(InputError, match="characters that it does not know in a text into a special token"):
        load_tokenizer(saved(tmp_path / "t", backend, {"eos_token": "</s>"}))
    backend = Tokenizer(models.WordLevel({"</s>": 0, "the": 1}, unk_token="<unk>"))
    with pytest.raises(InputError, match=r"cannot encode text: WordLevel error: Missing \[UNK\]"):
        load_tokenizer(saved(tmp_path / "u", backend, {"eos_token": "</s>"}))


def test_a_special_token_that_only_the_settings_name_is_one(tmp_path):
    """A5: one list: the tokenizer.json does not mark this EOS as special, tokenizer_config.json does."""
    folder = saved(tmp_path / "t", *unigram())
    spec = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    spec["added_tokens"] = [{**token, "special": False} for token in spec["added_tokens"]]
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id not in encode_plain(tokenizer, ["the </s> ab"])[0]


def test_byte_level_bpe_is_encoded_as_before(tokenizer_folder):
    """The ids of all that had no error are those of transformers, its spec is as it was."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    ids = tokenizer([*HARD], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert encode_plain(tokenizer, list(HARD)) == ids
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    assert json.loads(plain_json(tokenizer))["model"] == spec["model"]


def alone(tokenizer_folder, out, rename="<|endoftext|>"):
    out.mkdir()
    text = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8").replace("<|endoftext|>", rename)
    (out / "tokenizer.json").write_text(text, encoding="utf-8")
    return str(out)


@pytest.mark.parametrize("eos", ["<|endoftext|>", "</s>"])
def test_a_tokenizer_json_alone_is_a_tokenizer(tokenizer_folder, tmp_path, eos):
    """C17: "the folder holds tokenizer.json; it needs a tokenizer.json"."""
    tokenizer = load_tokenizer(alone(tokenizer_folder, tmp_path / "t", eos))
    assert tokenizer.eos_token == eos and tokenizer.eos_token_id == 0
    if eos == "<|endoftext|>":
        assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(load_tokenizer(str(tokenizer_folder)))
        assert plain_json(tokenizer) == plain_json(load_tokenizer(str(tokenizer_folder)))


def test_a_tokenizer_json_beside_settings_without_a_class(tokenizer_folder, tmp_path):
    """C17: what the message asks for is enough."""
    folder = alone(tokenizer_folder, tmp_path / "t", "<mine>")
    with pytest.raises(InputError, match=r'a tokenizer\.json alone does not say.*"eos_token"'):
        load_tokenizer(folder)
    (tmp_path / "t" / "tokenizer_config.json").write_text('{"eos_token": "<mine>"}')
    assert load_tokenizer(folder).eos_token_id == 0


def test_a_tokenizer_json_with_two_that_may_be_eos_is_refused(tokenizer_folder, tmp_path):
    folder = alone(tokenizer_folder, tmp_path / "t")
    spec = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": 400, "content": "</s>"})
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"it has <\|endoftext\|>, </s>"):
        load_tokenizer(folder)


def test_a_broken_tokenizer_json_is_one_message(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text("[1")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path / "t"))


def test_new_ids_keep_the_space_before_their_first_word(tmp_path):
    """A14: what a model adds is what stands behind the prompt in the whole text."""
    tokenizer = load_tokenizer(saved(tmp_path / "t", *unigram()))
    prompt, whole = encode_prompt(tokenizer, "ab"), encode_prompt(tokenizer, "ab the cd")
    assert whole[: len(prompt)] == prompt
    assert decode_new(tokenizer, prompt, whole[len(prompt) :]) == " the cd"
    assert tokenizer.decode(whole[len(prompt) :]) == "the cd"  # by themselves


def test_new_ids_of_byte_level_bpe_are_as_before(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    for text in HARD:
        ids = encode_plain(tokenizer, [text])[0]
        assert decode_new(tokenizer, encode_prompt(tokenizer, "the fox"), ids) == text
    assert encode_prompt(tokenizer, "") == [tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in encode_prompt(tokenizer, "a<|endoftext|>b")  # as in training


def test_a_tokenizer_json_of_garbage_is_one_message(tmp_path):
    """C8: what tokenizers says of it, and not that a tokenizer.json is needed where one is."""
    merges = '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}'
    for content in ('{"version": "1.0", "model": 5', "\x00", merges):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(InputError, match=r"the files in it \(tokenizer\.json\) make no tokenizer; .* \(.+\)"):
            load_tokenizer(str(tmp_path))
