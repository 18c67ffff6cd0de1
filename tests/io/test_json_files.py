"""JSON and JSON-lines files are read with file and line in every message, and written completely."""

from __future__ import annotations

import json
import re

import pytest

from gpt4roi.errors import InputError
from gpt4roi.io.json_files import as_json, read_json, read_json_object, read_jsonl, write_json


def test_a_byte_order_mark_is_no_part_of_the_value(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == read_json_object(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "a.json: not valid JSON: .*line 1 column 2.*; is it complete?"),
        (b'{"a": "\xff"}', "a.json: not UTF-8 text at byte 7; expected JSON"),
        (b"[" * 100_000, "a.json: not valid JSON: nested too deeply"),
        (b"1" * 5000, "a.json: not valid JSON: Exceeds the limit"),
        (b"[1]", "a.json: expected an object, got a list"),
        (None, "a.json: no such file; give the file of boxes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json_object(tmp_path / "a.json", "the file of boxes")
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}: is a folder; give a JSON file inside it"):
        read_json(tmp_path)


def test_lines_are_read_and_a_wrong_one_is_told_with_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "two\u2028lines"}\n\n2\n', encoding="utf-8")
    assert read_jsonl(path) == [{"a": "two\u2028lines"}, 2]
    path.write_text("1\n\n{\n")
    with pytest.raises(InputError, match=r"a\.jsonl#3: not valid JSON"):
        read_jsonl(path)


def test_texts_stay_readable_unless_no_encoding_has_them(tmp_path):
    assert as_json({"a": "ü"}) == '{"a": "ü"}'
    half = {"a": "\ud83d"}
    write_json(tmp_path / "a.json", half, indent=1)
    assert (tmp_path / "a.json").read_text() == json.dumps(half, indent=1) + "\n"
    assert as_json("ü", encoding="ascii") == '"\\u00fc"'
