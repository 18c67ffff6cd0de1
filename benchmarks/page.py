"""Writes the tables of benchmarks/README.md from the files in benchmarks/results/."""

from __future__ import annotations

import ast
import json
import statistics
from pathlib import Path
from typing import Any

from common import cell
from plot import draw

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE / "README.md"
BEGIN, END = "<!-- written by benchmarks.run -->\n", "<!-- until here -->\n"
FIGURE = "scaling"


def keep(name: str, found: dict[str, Any]) -> None:
    """Keeps a benchmark's rows; those of another device than this run's stay as they are."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for device in {row["device"] for row in found["rows"]}:
        rows = [row for row in found["rows"] if row["device"] == device]
        kept[device] = {"machine": found["machine"], "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write(scripts: dict[str, Path]) -> None:
    """Writes the tables of all benchmarks that have results, and the figure."""
    parts = []
    for name, script in scripts.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        kept = json.loads(path.read_text(encoding="utf-8"))
        parts.append(section(name, ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))), kept))
        if name == FIGURE and "cpu" in kept:
            svg = draw(kept["cpu"]["rows"], kept["cpu"]["machine"])
            (RESULTS / "scaling.svg").write_text(svg, encoding="utf-8")
            parts[-1] += "\n![cost against number of boxes and size of the image](results/scaling.svg)\n"
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + after, encoding="utf-8")


def section(name: str, doc: str, kept: dict[str, Any]) -> str:
    """Writes one benchmark: what it is, and a line a comparison."""
    paragraphs = [part for part in doc.split("\n\n") if not part.startswith("    ")]
    machines = "; ".join(f"{device}: {found['machine']}" for device, found in kept.items())
    lines = [
        f"### `{name}.py`",
        "",
        *(" ".join(part.split()) + "\n" for part in paragraphs),
        f"{machines}.",
        "",
        "| case | alternative | ours | times less | by the best | on a GPU | the same |",
        "|---|---|---|---|---|---|---|",
    ]
    on_gpu = {_key(row): row for row in kept.get("cuda", {}).get("rows", [])}
    of_cpu = {_key(row): row for row in kept.get("cpu", {}).get("rows", [])}
    for key in dict.fromkeys([*of_cpu, *on_gpu]):
        row, gpu = of_cpu.get(key), on_gpu.get(key)
        here = _cells(row) if row else ["not measured"] * 4
        there = "not measured" if gpu is None else f"{_ratio(gpu)} ({cell(gpu['own'])} {gpu['unit']})"
        lines.append(f"| {' | '.join([key[0], *here, there, (row or gpu)['equal']])} |")
    return "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return row["case"], row["alternative"], row["ours"]


def _cells(row: dict[str, Any]) -> list[str]:
    theirs, own = (
        f"{row[name]}: {cell(row[way])} {row['unit']}" for name, way in (("alternative", "theirs"), ("ours", "own"))
    )
    return [theirs, own, f"**{_ratio(row)}**", f"{min(row['theirs']) / min(row['own']):.2f}"]


def _ratio(row: dict[str, Any]) -> str:
    return f"{statistics.median(row['theirs']) / statistics.median(row['own']):.2f}"
