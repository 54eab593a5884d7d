import pyarrow.parquet as pq
import pytest
import transformers
from tokenizers import trainers

from moe.data import build_corpus, load_tokenizer
from moe.data.text.corpus import SCHEMA, documents, prose
from moe.data.text.train_tokenizer import train_tokenizer

SENTENCE = "This is a sentence of plain English that says what the function is for and how it is used by others. "


def test_doctest_lines_are_left_out_and_prose_stays():
    text = prose(f"{SENTENCE}\n\n>>> f(1)\n2\n\n{SENTENCE}")
    assert text is not None and ">>>" not in text and text.count("plain English") == 2


def test_code_and_tables_are_no_prose():
    assert prose("x = f(1, 2)\ny = x ** 2 + z[0]\nreturn {k: v for k, v in y}") is None
    assert prose("1 2 3 4\n5 6 7 8\n" * 30) is None


def test_documents_are_definitions_without_repeated_docstrings():
    long = SENTENCE * 3
    source = (
        f'"""{long} module."""\nclass A:\n    """{long} class."""\n    def f(self):\n        """{long} method."""\n'
    )
    source += f'def g():\n    """{long} class."""\n'
    found = dict(documents(source, set()))
    assert list(found) == ["", "A"]
    assert found["A"].endswith("method.") and "class." in found["A"]


def test_sources_are_parsed_not_run(tmp_path):
    source = f'open({str(tmp_path / "ran")!r}, "w")\ndef f():\n    """{SENTENCE * 3}"""\n'
    assert len(list(documents(source, set()))) == 1
    assert not (tmp_path / "ran").exists()
    assert list(documents("def broken(:", set())) == []


def test_corpus_has_finewebs_schema_its_size_and_trains_a_tokenizer(tmp_path, capsys, monkeypatch):
    path = build_corpus(tmp_path / "corpus", packages=("stdlib",), max_bytes=200_000)
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    texts = table["text"].to_pylist()
    assert 200_000 <= sum(map(len, texts)) < 300_000
    assert len(set(table["id"].to_pylist())) == len(texts)
    before = path.read_bytes()
    assert build_corpus(tmp_path / "corpus") == path and path.read_bytes() == before
    assert "is there already" in capsys.readouterr().out
    plain, asked = trainers.BpeTrainer, {}
    monkeypatch.setattr(trainers, "BpeTrainer", lambda **settings: asked.update(settings) or plain(**settings))
    folder = train_tokenizer(dataset=str(tmp_path / "corpus"), out=tmp_path / "bpe", vocab_size=1000)
    assert not asked["show_progress"], "its bars are for a terminal; elsewhere they are empty lines"
    tokenizer = load_tokenizer(str(folder))
    assert len(tokenizer) == 1000 and "fewer than" not in capsys.readouterr().out
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"]) == texts[0]


def test_a_text_too_small_for_the_vocabulary_is_told(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("hello world, hello text")
    train_tokenizer(dataset=str(tmp_path / "a.txt"), out=tmp_path / "bpe", vocab_size=1000)
    assert "fewer than --vocab-size 1,000: the text is too small for more" in capsys.readouterr().out


def test_corpus_is_the_same_each_time(tmp_path):
    one = build_corpus(tmp_path / "one", packages=("stdlib",), max_bytes=100_000)
    other = build_corpus(tmp_path / "other", packages=("stdlib",), max_bytes=100_000)
    assert pq.read_table(one).equals(pq.read_table(other))


def test_a_disk_that_is_full_while_a_tokenizer_is_saved_is_one_message(tmp_path, monkeypatch, capsys):
    """tokenizers raises a bare Exception: a traceback, of a start that keeps its tokenizer too."""
    from moe.cli.main import main
    from moe.common.errors import InputError
    from moe.data.text.kept_tokenizer import keep_tokenizer

    (tmp_path / "a.txt").write_text("words\n" * 100)
    command = ["tokenizer", "--dataset", str(tmp_path / "a.txt"), "--vocab-size", "300", "--out", str(tmp_path / "bpe")]
    assert main(command) == 0
    tokenizer = load_tokenizer(str(tmp_path / "bpe"))
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "save_pretrained", full)
        with pytest.raises(InputError, match=r"the tokenizer's files cannot be written to .*No space left on device"):
            keep_tokenizer(tokenizer)
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "save_pretrained", full)
    capsys.readouterr()
    assert main([*command[:-1], str(tmp_path / "other")]) == 2
    assert "No space left on device" in capsys.readouterr().err and not (tmp_path / "other").exists()


def full(*_):
    raise Exception("No space left on device (os error 28)")
