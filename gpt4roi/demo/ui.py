"""User interface: the layout of the page, and which handler listens to which event."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from gpt4roi.demo.api import add_api
from gpt4roi.demo.examples import Examples
from gpt4roi.demo.handlers import MAX_NEW_TOKENS, Handlers
from gpt4roi.demo.page_values import ask_again
from gpt4roi.report.drawing import PALETTE, jpeg_data_url

QUESTIONS, IMAGES = "questions", "images"
"""Names of the queues in which everything waits that needs the model. Images are shown one after the other: of several
that a user chooses, the last one stays."""


def asset(name: str) -> str:
    """Reads a file of the page."""
    return (files("gpt4roi") / "demo" / "assets" / name).read_text(encoding="utf-8")


def head() -> str:
    """Returns the script that all parts of the page share, for the page's head."""
    return f"<script>window.gpt4roiPalette = {json.dumps(PALETTE)};\n{asset('page.js')}</script>"


def theme() -> gr.themes.Base:
    """Returns a theme in the system's own fonts: the page asks no other server for anything."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Soft(primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"])


def _part(name: str, template: str | None = None, **more: Any) -> gr.HTML:
    """Builds a part of the page from its files `<name>.js` and, where no template is given, `<name>.html`."""
    template = asset(f"{name}.html") if template is None else template
    return gr.HTML(html_template=template, js_on_load=asset(f"{name}.js"), apply_default_css=False, **more)


def build_page(
    handlers: Handlers, concurrency: int = 1, name_boxes: bool = True, limitations: str = "", masks: bool = False
) -> gr.Blocks:
    """Builds the page and its HTTP API.

    Args:
        handlers: Its event handlers.
        concurrency: How many answers, and how many names of boxes, are written together.
        name_boxes: Whether boxes are named as they are drawn.
        limitations: What the model can and cannot do; shown below the title.
        masks: Whether regions can be painted, for a model that reads masks.
    """
    with gr.Blocks(title="GPT4RoI", analytics_enabled=False) as page:
        about = f"<p>{escape(limitations)}</p>" if limitations else ""
        title = f"<h1>GPT4RoI</h1><p>Draw boxes on an image and talk about them.</p>{about}"
        gr.HTML(title, elem_classes="page-title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                limit = handlers.limits.max_bytes
                given = dict.fromkeys(("value", "image", "note", "names"))
                stage = _part("stage", **given, naming=name_boxes, masks=masks, max_bytes=limit, elem_id="stage")
                examples = _part(
                    "examples", '<div class="examples"></div>', value=_thumbnails(handlers.examples), elem_id="examples"
                )
            with gr.Column(scale=5, min_width=320):
                talk = _part("conversation", value=None, image=None, elem_id="conversation")
                hint_list = '<div class="hints" role="status" aria-live="polite"></div>'
                hints = _part("hints", hint_list, value=None, elem_id="hints")
                queue_position = gr.HTML(elem_id="queue-place")
                question = gr.Textbox(
                    label="Question", placeholder="What is <region1>?", lines=1, max_lines=8, elem_id="question"
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", interactive=False, elem_id="stop")
                with gr.Row():
                    small: dict[str, Any] = {"size": "sm", "min_width": 90}
                    over = gr.Button("Start over", elem_id="start-over", **small)
                    clear = gr.Button("Clear all", elem_id="clear-all", **small)
                    record = gr.Button("Save as JSON", elem_id="save-json", **small)
                    image = gr.Button("Save as image", elem_id="save-image", **small)
                    look = gr.Button("Where it looked", elem_id="explain", **small)
                explained = gr.HTML(elem_id="explained")
                settings = _settings()
                saved = _part("download", "<span></span>", value=None, elem_id="saved")

        # The page's own listeners are no part of the API, whose endpoints are in api.py.
        private: dict[str, Any] = {"api_visibility": "private", "api_name": "page"}
        quick = {**private, "queue": False, "show_progress": "hidden"}
        shown = {**private, "show_progress_on": [queue_position]}
        by_model = {**shown, "concurrency_id": QUESTIONS, "concurrency_limit": concurrency}
        one_by_one = {**shown, "concurrency_id": IMAGES, "concurrency_limit": 1, "trigger_mode": "multiple"}
        image_outputs = [stage, talk, hints]
        ask_inputs, ask_outputs = [question, stage, *settings], [*image_outputs, question, ask, stop]
        begin_outputs = [hints, ask, stop]
        asked = gr.on([ask.click, question.submit], handlers.begin, [question, stage], begin_outputs, **quick).then(
            handlers.ask, ask_inputs, ask_outputs, **by_model
        )
        forced = hints.force(handlers.begin_forced, [question, stage], begin_outputs, **quick).then(
            handlers.ask_forced, ask_inputs, ask_outputs, **by_model
        )
        for answered in (asked, forced):  # where Gradio itself refuses a question: the queue is full
            answered.failure(ask_again, None, [ask, stop], **quick)
        # A question being answered is cancelled first: nothing of it can arrive after what these show.
        cancel = {"fn": None, "cancels": [asked, forced], **quick}
        for event in (stop.click, stage.upload, examples.pick):  # another image waits for no answer about the old one
            event(**cancel).then(handlers.stop, [question, stage], ask_outputs, **quick)
        # After these cancellations: the browser runs the listeners of an event one after the other, each to its end.
        stage.upload(handlers.upload, None, image_outputs, **one_by_one)
        examples.pick(handlers.pick, None, image_outputs, **one_by_one)
        # Names have a queue of their own: a question never waits behind them, and they wait for it in the worker.
        stage.drawn(handlers.want_names, None, [stage], trigger_mode="multiple", **quick).success(
            handlers.name_boxes, None, [stage], trigger_mode="always_last", show_progress="hidden",
            concurrency_id="names", concurrency_limit=concurrency, **private,
        )  # fmt: skip
        over.click(**cancel).then(handlers.start_over, [stage], [*image_outputs, ask, stop], **quick)
        clear.click(**cancel).then(handlers.clear_all, None, [*image_outputs, ask, stop, question], **quick)
        talk.correct(handlers.correct, None, [talk, hints], trigger_mode="multiple", **quick)
        record.click(handlers.save_record, [stage], [saved, hints], **quick)
        image.click(handlers.save_image, [stage], [saved, hints], **quick)
        look.click(handlers.explain, [stage], [explained, hints], **by_model)
        for event in (over.click, clear.click, stage.upload, examples.pick):
            event(lambda: "", None, [explained], **quick)
        page.unload(handlers.leave)
        add_api(handlers, {IMAGES: 1, QUESTIONS: concurrency})
    return page


def _settings() -> list[gr.components.Component]:
    with gr.Accordion("Settings", open=False):
        temperature = gr.Slider(0, 2, value=0, step=0.05, label="Temperature", info="0 decodes greedily")
        length = gr.Slider(1, MAX_NEW_TOKENS, value=256, step=1, label="Longest answer, in tokens")
        seed = gr.Number(
            value=-1, precision=0, label="Seed", info="repeats a sampled answer; below 0: a new one each time"
        )
    return [temperature, length, seed]


def _thumbnails(examples: Examples) -> list[dict]:
    return [
        {"name": name, "title": example.title, "src": jpeg_data_url(example.open(), max_side=160, quality=80)}
        for name, example in examples.items()
    ]
