"""Checks what setup.py says where it cannot go on; nothing is built."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_setup(extra_path, **environment):
    """Runs `setup.py --version` with a folder in front of the module path, and returns the finished process."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MMCV_")}
    clean |= {"PYTHONPATH": str(extra_path), **environment}
    return subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=clean, capture_output=True, text=True
    )


def test_setup_needs_no_torch_for_the_plain_version(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('hidden')\n")
    result = run_setup(tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, "1.4.7+gpt4roi.subset")


def test_setup_tells_what_to_do_when_it_cannot_see_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('hidden')\n")
    result = run_setup(tmp_path, MMCV_WITH_OPS="1")
    assert result.returncode == 1
    assert "MMCV_WITH_OPS=1 pip install --no-build-isolation -e ." in result.stderr
    assert result.stderr.count("\n") == 1


def test_setup_names_a_missing_compiler(tmp_path):
    result = run_setup(tmp_path, MMCV_WITH_OPS="1", CXX="/nowhere/c++ -v")
    assert result.returncode == 1
    assert "needs a C++ compiler, and there is no /nowhere/c++" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("gpt4roi-mmcv: ")


def test_setup_asks_for_the_setuptools_that_reads_its_table(tmp_path):
    (tmp_path / "setuptools" / "command").mkdir(parents=True)
    (tmp_path / "setuptools" / "__init__.py").write_text("__version__ = '65.5.0'\ndef setup(**given): exit('no')\n")
    (tmp_path / "setuptools" / "command" / "build_py.py").write_text("class build_py: pass\n")
    result = run_setup(tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "setuptools 65.5.0 is too old, 77 or later is needed: pip install 'setuptools>=77'" in result.stderr


@pytest.mark.parametrize("name", ["mmcv", "mmcv-full", "mmcv_full", "mmcv-lite"])
def test_setup_refuses_to_go_over_another_mmcv(tmp_path, name):
    folder = tmp_path / f"{name.replace('-', '_')}-1.7.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.7.2\n")
    result = run_setup(tmp_path)
    assert result.returncode == 1
    assert f"{name} 1.7.2 is installed and owns the import name mmcv" in result.stderr


def test_a_library_for_another_torch_is_reported_and_the_plain_version_used(tmp_path):
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "ops").mkdir()
    for path in ("__init__.py", "version.py", "ops/__init__.py", "ops/compiled.py", "ops/plain.py", "ops/roi_align.py"):
        (package / path).write_text((ROOT / "mmcv" / path).read_text())
    (package / "_ext.so").write_bytes(b"not a library")
    code = "import mmcv.ops; print(mmcv.__file__); print(mmcv.ops.COMPILED_FOR)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [str(package / "__init__.py"), "()"]
    assert "RoIAlign runs in plain PyTorch. Rebuild it with MMCV_WITH_OPS=1" in result.stderr
