"""The JSON schema of the unified format says what the reader takes."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

import gpt4roi.data
from gpt4roi.data.unified_object import BadObjectError, check_object

SCHEMA = json.loads((Path(gpt4roi.data.__file__).parent / "tables" / "unified.schema.json").read_text())
PAGE = Path(__file__).parents[2] / "docs" / "unified_format.md"
RUNS = {"size": [20, 30], "counts": [65, 3, 17, 3, 512]}
TURNS = [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "a cat"}]
GOOD = {"image": "a.png", "boxes": [[0, 0, 10, 10.5]], "conversations": TURNS}


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def test_the_example_of_the_page_is_valid(validator):
    example = re.search(r"```json\n(\{.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    objects = [json.loads(line) for line in example.splitlines()]
    assert len(objects) == 4
    for entry in objects:
        validator.validate(entry)


def test_every_field_that_the_reader_knows_is_in_the_schema_and_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    known = set(SCHEMA["properties"]) - {"id"}
    read = set(re.findall(r'item(?:\.get\(|\[)"(\w+)"', Path(check_object.__code__.co_filename).read_text()))
    assert read == known
    assert all(f"`{name}`" in page for name in known)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"boxes": None, "masks": [RUNS]},
        {"boxes": [], "masks": [[[1, 2, 9, 2, 9, 7]]]},
        {"boxes": None, "masks": [[1, 2, 9, 2, 9, 7]]},
        {"boxes": None, "masks": [[[[1, 2], [9, 2], [9, 7]]]]},
        {"independent": True, "tasks": ["caption"], "region_texts": ["a cat"], "image_pipeline": "detection"},
        {"picture_pipeline": "bilinear"},
        {"id": 7, "more": {"x": 1}, "height": 20, "width": 30},
        {"image": None, "boxes": None, "conversations": [TURNS[0] | {"value": "Hi"}, TURNS[1]]},
        {"conversations": [TURNS[0], {"from": "gpt", "answer_regions": [1]}]},
        {"conversations": [TURNS[0], {"from": "gpt", "answer_regions": [], "value": "none"}]},
    ],
)
def test_what_the_reader_takes_is_valid(validator, changes):
    check_object(GOOD | changes, "here")
    validator.validate(GOOD | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": [[0, 0, 1]]},
        {"boxes": [[0, 0, "1", 1]]},
        {"boxes": [[0, 0, 1e9, 1]]},
        {"boxes": {"x": 1}},
        {"masks": [RUNS]},
        {"boxes": None, "masks": [{"size": [0, 3], "counts": [3]}]},
        {"boxes": None, "masks": [[1, 2, 3, 4]]},
        {"boxes": None, "masks": ["x"]},
        {"conversations": "hello"},
        {"conversations": TURNS[:1]},
        {"conversations": [TURNS[0], {"from": "robot", "value": "x"}]},
        {"conversations": [TURNS[0], {"from": "gpt", "value": " "}]},
        {"conversations": [TURNS[0], {"from": "gpt", "value": 3}]},
        {"conversations": [TURNS[0], {"from": "gpt"}]},
        {"conversations": [TURNS[0], {"from": "gpt", "answer_regions": 1}]},
        {"conversations": [TURNS[0], {"from": "gpt", "answer_regions": [0]}]},
        {"image": 7},
        {"independent": "yes"},
        {"tasks": 5},
        {"region_texts": [3]},
        {"picture_pipeline": "cubic"},
        {"image_pipeline": "cubic"},
        {"image_pipeline": "detection", "picture_pipeline": "bilinear"},
    ],
)
def test_what_the_reader_leaves_out_is_invalid(validator, changes):
    with pytest.raises(BadObjectError):
        check_object(GOOD | changes, "here")
    assert not validator.is_valid(GOOD | changes)


ASKED = {"from": "human", "value": "Which of <region1> and <region2> are cups?"}


def test_an_answer_that_names_regions_is_written_from_their_numbers():
    two = {"image": "a.png", "boxes": [[0, 0, 10, 10], [5, 5, 9, 9]]}

    def read(numbers, *before, **more):
        turns = [*before, ASKED, {"from": "gpt", "answer_regions": numbers}]
        return check_object({**two, "conversations": turns, **more}, "here")["conversations"][-1]

    assert read([2, 1, 2]) == ("assistant", "region1, region2")
    assert read([2]) == ("assistant", "region2")
    assert read([]) == ("assistant", "none")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (
            [ASKED, {"from": "gpt", "answer_regions": [1, 3]}],
            "here: turn 2: answer_regions name <region3>, which no question before it mentions",
        ),
        (
            [ASKED, {"from": "gpt", "value": "region1"}, TURNS[0], {"from": "gpt", "answer_regions": [2]}],
            "here: turn 4: answer_regions name <region2>, which no question before it mentions",
        ),
        (
            [ASKED | {"answer_regions": [1]}, TURNS[1]],
            "here: turn 1: answer_regions belong to an answer, after its question",
        ),
        (
            [ASKED, {"from": "gpt", "answer_regions": [1], "value": "region2"}],
            "here: turn 2: its value 'region2' is not its answer_regions, 'region1'",
        ),
        (
            [ASKED, {"from": "gpt", "answer_regions": [True]}],
            "here: turn 2: answer_regions must be a list of whole numbers, got [True]",
        ),
    ],
)
def test_regions_that_an_answer_cannot_name_are_refused(turns, message):
    with pytest.raises(BadObjectError) as error:
        check_object({**GOOD, "boxes": [[0, 0, 9, 9]] * 3, "conversations": turns, "independent": True}, "here")
    assert str(error.value) == message
