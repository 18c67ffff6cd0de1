"""Benchmarks by name; each module states its source, split, prompt, metric, protocol and pitfalls at the top.

A module defines BENCHMARKS, each an `items.Benchmark`, a user's file one BENCHMARK. `[guess]` marks what no source
states. A benchmark that another model judges is such a module too, whose `score` asks `source.judge`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from gpt4roi.errors import InputError
from gpt4roi.io.python_files import import_file

if TYPE_CHECKING:
    from gpt4roi.evaluation.items import Benchmark

BENCHMARKS = {
    **dict.fromkeys(("coco", "coco-two-way", "lvis-classes", "lvis-two-way"), "categories"),
    **dict.fromkeys(("coco-detection", "lvis-detection"), "detection"),
    **dict.fromkeys(("gar-vqa", "gar-caption"), "gar_bench"),
    **dict.fromkeys(("lvis", "paco"), "object_names"),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), "referring_expressions"),
    **dict.fromkeys(("v7w-pointing", "v7w-telling"), "visual7w"),
    **{f"{name}-bench": f"{name}_bench" for name in ("dlc", "ferret", "mdvp", "vip")},
    **{"flickr30k": "flickr30k", "ref-l4": "ref_l4", "unified": "unified", "vcr": "vcr", "vg": "visual_genome"},
}
"""What a benchmark is called on the command line, and the module here whose BENCHMARKS holds it."""
FILES = {"stamps": Path(__file__).parents[3] / "quickstart" / "benchmark" / "stamps.py"}
"""Benchmarks of a checkout that had a name before they were given as a file."""


def open_benchmark(name: str) -> Benchmark:
    """Imports one benchmark: by its name, or from a Python file of the same form.

    Raises InputError for an unknown name, and for a file that defines no benchmark.
    """
    if name in BENCHMARKS:
        return import_module(f"{__name__}.{BENCHMARKS[name]}").BENCHMARKS[name]
    if name in FILES and not FILES[name].is_file():
        raise InputError(f"--benchmark {name}: is part of a checkout; run this from one, or give the benchmark's file")
    if name not in FILES and not name.endswith(".py"):
        raise InputError(
            f"--benchmark {name!r}: unknown; give one of {', '.join(sorted(BENCHMARKS))}, or a Python file"
        )
    from gpt4roi.evaluation.items import Benchmark

    module = import_file(FILES.get(name, Path(name)), "--benchmark")
    benchmark = getattr(module, "BENCHMARK", None)
    if not isinstance(benchmark, Benchmark):
        raise InputError(
            f"--benchmark {name}: defines no BENCHMARK = gpt4roi.evaluation.items.Benchmark(title, splits, load, "
            "score); docs/evaluation.md shows one"
        )
    return benchmark


def benchmark_name(name: str) -> str:
    """Returns what a benchmark is called in its results: its name, or the name of its file without the ending."""
    return Path(name).stem if name.endswith(".py") else name
