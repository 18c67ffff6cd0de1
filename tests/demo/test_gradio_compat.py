"""Gradio internals that the page relies on: each test fails where a release of Gradio changes one of them."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest

from gpt4roi.demo import gradio_compat

pytestmark = pytest.mark.heavy  # importing Gradio is


def test_the_second_check_of_a_started_page_can_still_be_left_out():
    """Without it a loaded machine, on which the page needs three seconds to answer, could not start it."""
    parameters = inspect.signature(gr.Blocks.launch).parameters
    assert set(gradio_compat.LAUNCH_OPTIONS) <= set(parameters)


@pytest.mark.parametrize(("sent", "value"), [({"image": "abc"}, "abc"), ({"name": "cat"}, None), (["no"], None)])
def test_what_the_browser_sends_with_an_event_is_read_whatever_it_is(sent, value):
    event = gr.EventData(None, sent)
    assert gradio_compat.event_value(event, "image") == value


def test_an_answer_that_ends_while_it_is_cancelled_is_no_error(running):
    """Gradio deletes its iterator at both; the second deletion would be an error of the server in the browser."""
    answers = running.page.app.iterators

    class Ending:
        async def aclose(self) -> None:
            answers.pop("ending")

    answers["ending"] = Ending()
    body = {"session_hash": "stranger-000001", "fn_index": 0, "event_id": "ending"}
    answer = httpx.post(f"{running.url}gradio_api/cancel", json=body, timeout=600)
    assert (answer.status_code, answer.text) == (200, '{"success":true}')


def test_what_gradio_keeps_of_a_session_goes_with_it(running):
    """Else the images and answers of every user would stay in memory for as long as the server runs."""
    kept = running.page.state_holder.session_data
    kept["somebody-000001"] = SimpleNamespace()
    gradio_compat.forget_session(running.page, "somebody-000001")
    gradio_compat.forget_session(running.page, "nobody-0000001")
    assert "somebody-000001" not in kept
