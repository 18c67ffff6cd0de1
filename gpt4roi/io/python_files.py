"""Python files of users (a benchmark, a wrapped model) imported by their path."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gpt4roi.errors import InputError


def import_file(path: str | Path, role: str) -> ModuleType:
    """Imports a Python file; one whose folder is a package is imported as a member of that package.

    role: the flag that named the file, for messages.

    Raises InputError where the file is missing, is not Python, or fails; it names the line.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise InputError(f"{role} {path}: no such file")
    try:
        if (file.parent / "__init__.py").is_file():
            return _import_member(file)
        name = f"gpt4roi_user_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise InputError(f"{role} {path}: cannot be read as Python; give a file that ends in .py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (OSError, SyntaxError) as error:
        raise InputError(f"{role} {path}: {error}") from None
    except Exception as error:  # whatever the user's own lines raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        if not lines:
            raise
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"{role} {path}#{lines[-1]}: {kind}{error}") from error


def _import_member(file: Path) -> ModuleType:
    """Imports a file of a package; the folder that holds the package is put at the end of the search path."""
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return import_module(".".join(names))
