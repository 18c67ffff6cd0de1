"""Builds gpt4roi-mmcv; with MMCV_WITH_OPS=1 in the environment it compiles RoIAlign against the installed PyTorch.

With a CUDA toolkit that fits PyTorch the operator is compiled for CUDA too; MMCV_WITH_CUDA=0 leaves that out.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import setuptools
from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SOURCES = Path("mmcv/ops/csrc")
COMMAND = "MMCV_WITH_OPS=1 pip install --no-build-isolation -e ."
SETUPTOOLS = 77


def refuse_old_setuptools() -> None:
    """Stops where pyproject.toml could not be read; without build isolation pip does not look at what it requires."""
    if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS:
        raise SystemExit(
            f"gpt4roi-mmcv: setuptools {setuptools.__version__} is too old, {SETUPTOOLS} or later is needed: "
            f"pip install 'setuptools>={SETUPTOOLS}'"
        )


def refuse_over_another_mmcv() -> None:
    """Stops the installation where another distribution already owns the import name `mmcv`."""
    # An isolated build does not see the environment it installs into on sys.path, but knows where it is.
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path}
    for distribution in metadata.distributions(path=sorted(places)):
        name = distribution.metadata["Name"] or ""
        if re.fullmatch(r"mmcv([-_.](full|lite|nightly))?", name, re.IGNORECASE):
            raise SystemExit(
                f"gpt4roi-mmcv: {name} {distribution.version} is installed and owns the import name mmcv; "
                f"keep it (gpt4roi can use it), or run `pip uninstall {name}` first"
            )


def find_cuda(torch) -> tuple[str, str] | None:
    """Returns the path of nvcc and the folder of the CUDA headers, or None where CUDA cannot or shall not be used."""
    if os.environ.get("MMCV_WITH_CUDA") == "0" or torch.version.cuda is None:
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")
    if nvcc is None:
        return None
    release = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        print(f"gpt4roi-mmcv: without CUDA: {nvcc} is not of CUDA {torch.version.cuda}, which PyTorch was built with")
        return None
    # nvcc on the PATH may be a wrapper or a link; its dry run tells where the toolkit is.
    dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(.+)", dry_run)
    places = [Path(top[1].strip())] if top else []
    places += [Path(folder, "nvidia", f"cu{release[1]}") for folder in {sysconfig.get_path("platlib"), *sys.path}]
    for include in (place / "include" for place in places):
        if (include / "cuda_runtime_api.h").is_file() and (include / "cuda.h").is_file():
            return nvcc, str(include.resolve())
    print(f"gpt4roi-mmcv: without CUDA: no cuda_runtime_api.h beside {nvcc}")
    return None


def gpu_architectures(torch) -> list[str]:
    """Returns nvcc's options: TORCH_CUDA_ARCH_LIST if set, else the card of this machine, else every generation."""
    options = []
    for entry in re.split(r"[ ;]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
        if match:
            number = match[1] + match[2]
            options.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if match[3]:
                options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        elif entry:
            raise SystemExit(f"gpt4roi-mmcv: TORCH_CUDA_ARCH_LIST: expected entries like 8.0 or 9.0+PTX, got {entry!r}")
    return options or ["-arch=native" if torch.cuda.is_available() else "-arch=all-major"]


def operator_build() -> dict:
    """Returns the arguments of setup() that compile the operator."""
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        raise SystemExit(
            f"gpt4roi-mmcv: MMCV_WITH_OPS=1 compiles against the installed PyTorch, which this build does not see; "
            f"install torch, then run: {COMMAND}"
        ) from None
    compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
    if sys.platform != "win32" and shutil.which(compiler) is None:
        raise SystemExit(
            f"gpt4roi-mmcv: MMCV_WITH_OPS=1 needs a C++ compiler, and there is no {compiler}; install one, or "
            "leave MMCV_WITH_OPS out for the version in plain PyTorch"
        )
    cuda = find_cuda(torch)
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    extension = CppExtension(
        "mmcv._ext",
        [str(SOURCES / "roi_align.cpp")] + ([str(SOURCES / "roi_align_cuda.cpp")] if cuda else []),
        include_dirs=[str(HERE / SOURCES)] + ([cuda[1]] if cuda else []),
        define_macros=[("MMCV_WITH_CUDA", None)] if cuda else [],
        extra_compile_args=["-O3", *openmp],
        extra_link_args=openmp,
        # The CUDA runtime itself comes with PyTorch, through c10_cuda.
        libraries=["c10_cuda"] if cuda else [],
    )

    class BuildOperator(BuildExtension):
        """Compiles the kernels with nvcc, then the rest with the C++ compiler."""

        def build_extensions(self) -> None:
            if cuda:
                objects = Path(self.build_temp).resolve()
                objects.mkdir(parents=True, exist_ok=True)
                kernels = str(objects / "roi_align_kernels.o")
                source = str(HERE / SOURCES / "roi_align_kernels.cu")
                options = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC", *gpu_architectures(torch)]
                if subprocess.run([cuda[0], *options, "-c", source, "-o", kernels]).returncode:
                    raise SystemExit("gpt4roi-mmcv: nvcc failed, see above; MMCV_WITH_CUDA=0 builds for the CPU only")
                self.extensions[0].extra_objects = [kernels]
            super().build_extensions()

    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildOperator}}


class BuildPlain(build_py):
    """Builds without the operator, and removes one that an earlier editable install left in this folder."""

    def run(self) -> None:
        for library in HERE.glob("mmcv/_ext*.so"):
            library.unlink()
        super().run()


refuse_old_setuptools()
refuse_over_another_mmcv()
setup(**(operator_build() if os.environ.get("MMCV_WITH_OPS") == "1" else {"cmdclass": {"build_py": BuildPlain}}))
