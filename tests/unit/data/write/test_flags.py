"""What --help says."""

import argparse

import pytest

from moe.data.write.flags import add_convert_arguments, add_tokenizer_arguments


@pytest.mark.parametrize("add", [add_convert_arguments, add_tokenizer_arguments])
def test_help_says_each_default_in_words(add):
    parser = argparse.ArgumentParser()
    add(parser)
    text = " ".join(parser.format_help().split())
    assert "None" not in text and "(default: HuggingFaceFW/fineweb)" in text
    for action in parser._actions:
        assert action.nargs == 0 or "(default: " in (action.help or ""), action.dest
