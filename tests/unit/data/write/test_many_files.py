"""More files of text than a process may have open."""

import json

from moe.data.write.convert import convert
from tests.unit.data.conftest import files_left, make_texts


def test_300_files_are_converted_with_40_open(tmp_path, make_request):
    (tmp_path / "text").mkdir()
    for number, text in enumerate(make_texts(300)):
        (tmp_path / "text" / f"{number:03}.jsonl").write_text(json.dumps({"id": str(number), "text": text}) + "\n")
    with files_left(40):
        meta = convert(make_request(workers=2))
    assert sum(meta.documents.values()) == 300
