"""Gradio internals that the page relies on, all in one place; a test each says what breaks without it.

`pyproject.toml` pins the minor versions that were tried.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

LAUNCH_OPTIONS: dict[str, Any] = {"_frontend": False}
"""Else `launch` checks a second time whether the page answers, and gives up after three seconds."""


def event_value(event: gr.EventData, key: str) -> Any:
    """Returns what the browser sent with a custom event under a key, unchecked; None where there is nothing."""
    return event._data.get(key) if isinstance(event._data, dict) else None


def tolerate_double_deletion(page: gr.Blocks) -> None:
    """Lets an answer end while it is cancelled.

    Gradio then deletes its iterator twice, at its end and at the cancellation, and whoever comes second fails: the
    browser is told of a server error, or Gradio keeps what is left of the event.
    """
    page.app.iterators = _Iterators(page.app.iterators)


class _Iterators(dict):
    def __delitem__(self, event: str) -> None:
        self.pop(event, None)


def forget_session(page: gr.Blocks, key: str) -> None:
    """Drops the last values that a session sent and was shown, which Gradio keeps beyond it."""
    page.state_holder.session_data.pop(key, None)
