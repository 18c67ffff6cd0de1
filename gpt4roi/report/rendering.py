"""HTML templates (jinja2) and their assets: every page is one file that opens offline, with all data escaped."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import Extension
from markupsafe import Markup, escape

from gpt4roi.report.drawing import jpeg_data_url, region_color

_MENTION = re.compile(r"(?:&lt;)?region\s?(\d{1,4})(?:&gt;)?", re.IGNORECASE)


class _DropIndentation(Extension):
    """Removes line breaks between tags of a template, so that the page holds no whitespace that only formats it."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return re.sub(r"(?<=[>}])\s*\n\s*(?=[<{])", "", source.strip())


def render(template: str, **values: Any) -> str:
    """Returns the page that a template of `report/templates` makes of the values.

    Beside the values, templates have the filters `chips`, `jpeg` and `region_color` and the function `asset`.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("gpt4roi.report")
    environment = jinja2.Environment(
        loader=loader, extensions=[_DropIndentation], autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"chips": _chips, "jpeg": jpeg_data_url, "region_color": region_color}
    environment.globals["asset"] = _asset
    return environment


def _asset(name: str) -> Markup:
    """Returns a file of `report/assets`, our own, as it is."""
    loader = jinja2.PackageLoader("gpt4roi.report", "assets")
    return Markup(loader.get_source(_environment(), name)[0])


def _chips(text: str) -> Markup:
    """Escapes a text and shows every mention of a region in the colour of its box."""

    def chip(mention: re.Match) -> str:
        number = int(mention[1])
        return f'<span class="region" style="--c:{region_color(max(number - 1, 0))}">region{number}</span>'

    return Markup(_MENTION.sub(chip, str(escape(text))))
