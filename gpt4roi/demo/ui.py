"""The page: its parts, where they stand, and which listener belongs to what."""

from __future__ import annotations

import json
from importlib.resources import files

import gradio as gr

from gpt4roi.demo.api import add_api
from gpt4roi.demo.examples import EXAMPLES, available, open_example
from gpt4roi.demo.handlers import MAX_NEW_TOKENS, Handlers, ask_again
from gpt4roi.demo.uploads import as_data_url
from gpt4roi.report.drawing import PALETTE

MODEL = "model"
"""What needs the model waits in one queue of this name."""

STAGE = """
<div class="stage">
  <div class="stage-drop">
    <button type="button" class="plain choose">Choose an image</button>
    <span>or drop one here, paste one, or click an example</span>
  </div>
  <div class="stage-frame" tabindex="0" role="group" aria-label="Image. Draw a box by dragging.">
    <img class="stage-image" alt="" draggable="false">
    <div class="stage-boxes"></div>
  </div>
  <p class="stage-note" role="status" aria-live="polite"></p>
  <div class="stage-chips" aria-label="Regions"></div>
  <div class="stage-tools">
    <button type="button" class="plain add-box">Add a box</button>
    <button type="button" class="plain choose">Another image</button>
  </div>
  <p class="stage-help">Drag on the image to draw a box. Move it by its edge or number, resize it by its dots; with
  the keyboard: Tab to a box, arrows move, Shift and arrows resize, Delete deletes, Enter puts it into the question.</p>
  <input type="file" accept="image/jpeg,image/png,image/webp,image/gif,image/bmp" hidden>
</div>
"""
CONVERSATION = """
<p class="conversation-empty">Ask about the image as a whole, or draw boxes and ask about them:
a click on a region’s chip puts it into the question.</p>
<div class="conversation" role="log" aria-live="polite" aria-label="Conversation"></div>
"""


def asset(name: str) -> str:
    """Reads a file of the page."""
    return (files("gpt4roi") / "demo" / "assets" / name).read_text(encoding="utf-8")


def head() -> str:
    """Returns what the parts of the page share, for the page's head."""
    return f"<script>window.gpt4roiPalette = {json.dumps(PALETTE)};\n{asset('page.js')}</script>"


def theme() -> gr.themes.Base:
    """A quiet theme in the machine's own fonts: the page asks no other server for anything."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Soft(primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"])


def _part(template: str, script: str, **more) -> gr.HTML:
    return gr.HTML(html_template=template, js_on_load=asset(script), apply_default_css=False, **more)


def build_page(handlers: Handlers, at_once: int = 1) -> gr.Blocks:
    """Builds the page and its programming interface. at_once: how many answers are computed side by side."""
    with gr.Blocks(title="GPT4RoI", analytics_enabled=False) as page:
        gr.HTML("<h1>GPT4RoI</h1><p>Draw boxes on an image and talk about them.</p>", elem_classes="page-title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                limit = handlers.limits.max_bytes
                stage = _part(STAGE, "stage.js", value=None, image=None, note=None, max_bytes=limit, elem_id="stage")
                examples = _part('<div class="examples"></div>', "examples.js", value=_thumbnails(), elem_id="examples")
            with gr.Column(scale=5, min_width=320):
                conversation = _part(CONVERSATION, "conversation.js", value=None, image=None, elem_id="conversation")
                hints = _part(
                    '<div class="hints" role="status" aria-live="polite"></div>',
                    "hints.js",
                    value=None,
                    elem_id="hints",
                )
                place = gr.HTML(elem_id="queue-place")
                question = gr.Textbox(
                    label="Question", placeholder="What is <region1>?", lines=1, max_lines=8, elem_id="question"
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", interactive=False, elem_id="stop")
                with gr.Row():
                    small = {"size": "sm", "min_width": 90}
                    over = gr.Button("Start over", elem_id="start-over", **small)
                    clear = gr.Button("Clear all", elem_id="clear-all", **small)
                    record = gr.Button("Save as JSON", elem_id="save-json", **small)
                    image = gr.Button("Save as image", elem_id="save-image", **small)
                settings = _settings()
                saved = _part("<span></span>", "download.js", value=None, elem_id="saved")

        # The page's own listeners are no part of the interface, whose names are api.py's.
        private = {"api_visibility": "private", "api_name": "page"}
        quick = {**private, "queue": False, "show_progress": "hidden"}
        by_model = {**private, "concurrency_id": MODEL, "concurrency_limit": at_once, "show_progress_on": [place]}
        shown = [stage, conversation, hints]
        asked = [question, stage, *settings]
        told = [*shown, question, ask, stop]
        begun = [hints, ask, stop]
        usual = gr.on([ask.click, question.submit], handlers.begin, [question, stage], begun, **quick).then(
            handlers.ask, asked, told, **by_model
        )
        anyway = hints.anyway(handlers.begin_anyway, [question, stage], begun, **quick).then(
            handlers.ask_anyway, asked, told, **by_model
        )
        for answered in (usual, anyway):  # where Gradio itself refuses a question: the queue is full
            answered.failure(ask_again, None, [ask, stop], **quick)
        # What was asked is cancelled first: nothing of it can arrive after what these say.
        ends = {"fn": None, "cancels": [usual, anyway], **quick}
        for event in (stop.click, stage.upload, examples.pick):  # another image waits for no answer about the old one
            event(**ends).then(handlers.stop, [question, stage], told, **quick)
        # After these `ends`: the browser takes the listeners of an event one after the other, to the end of each.
        stage.upload(handlers.upload, None, shown, trigger_mode="multiple", **by_model)
        examples.pick(handlers.pick, None, shown, trigger_mode="multiple", **by_model)
        over.click(**ends).then(handlers.start_over, [stage], [*shown, ask, stop], **quick)
        clear.click(**ends).then(handlers.clear_all, None, [*shown, ask, stop, question], **quick)
        record.click(handlers.save_record, [stage], [saved, hints], **quick)
        image.click(handlers.save_image, [stage], [saved, hints], **quick)
        page.unload(handlers.leave)
        add_api(handlers, MODEL, at_once)
    return page


def _settings() -> list:
    with gr.Accordion("Settings", open=False):
        temperature = gr.Slider(0, 2, value=0, step=0.05, label="Temperature", info="0 takes the likeliest words")
        length = gr.Slider(1, MAX_NEW_TOKENS, value=256, step=1, label="Longest answer, in tokens")
        seed = gr.Number(value=-1, precision=0, label="Seed", info="repeats what is drawn; below 0: anew each time")
    return [temperature, length, seed]


def _thumbnails() -> list[dict]:
    return [
        {"name": name, "title": EXAMPLES[name].title, "src": as_data_url(open_example(name), side=160, quality=80)}
        for name in available()
    ]
