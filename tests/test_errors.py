"""`InputError`: its code, and its way between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from gpt4roi import InputError
from gpt4roi.data.unified_object import BadObjectError
from gpt4roi.demo.hints import Hint, IncompleteQuestionError


def test_an_error_has_no_code_unless_it_is_given_one():
    assert InputError("no such file").code is None
    assert InputError("box 1 is upside down", code="box_inverted").code == "box_inverted"


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_keeps_its_message_and_code_between_processes(again):
    error = again(InputError("box 1 is upside down", code="box_inverted"))
    assert (str(error), error.code) == ("box 1 is upside down", "box_inverted")


@pytest.mark.parametrize(
    ("error", "name"),
    [(BadObjectError("wrong field", "a#1: no boxes"), "kind"), (IncompleteQuestionError([Hint("which?")]), "hints")],
)
def test_what_a_subclass_adds_survives_pickling(error, name):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), getattr(again, name), again.code) == (str(error), getattr(error, name), None)
