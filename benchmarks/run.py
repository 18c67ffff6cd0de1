"""Runs every benchmark, each in a process of its own, and writes the tables of benchmarks/README.md.

    python -m benchmarks.run            # all of them; rewrites results/ and the tables
    python -m benchmarks.run --quick    # small cases, in minutes; prints only
    python -m benchmarks.run roi_align  # some of them; the others' tables stay

On a machine with a GPU both are measured, and the GPU's column is filled.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # where the benchmarks find what they share, as when they are run by themselves
import page  # noqa: E402
from common import positive  # noqa: E402


def scripts() -> dict[str, Path]:
    """Finds the benchmarks: the scripts here that define `measure`."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        names = {getattr(node, "name", "") for node in ast.parse(path.read_text(encoding="utf-8")).body}
        if "measure" in names:
            found[path.stem] = path
    return found


def run_one(path: Path, quick: bool, threads: int) -> dict | None:
    """Runs one benchmark and returns its machine and rows, or None where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "rows.json")
        command = [sys.executable, str(path), "--threads", str(threads), "--json", str(answer)]
        code = subprocess.run([*command, "--quick"] if quick else command).returncode
        return json.loads(answer.read_text(encoding="utf-8")) if code == 0 else None


def main() -> int:
    found = scripts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(found)}")
    parser.add_argument("--quick", action="store_true", help="small cases, in minutes; writes nothing")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--tables", action="store_true", help="only write the tables anew from results/")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in found]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(found)}")
    failed = []
    for name in [] if args.tables else args.names or found:
        sys.stdout.write(f"\n== {name}\n")
        sys.stdout.flush()
        rows = run_one(found[name], args.quick, args.threads)
        if rows is None:
            failed.append(name)
        elif not args.quick:
            page.keep(name, rows)
            page.write(found)
    if args.tables:
        page.write(found)
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
