"""`InputError`, the one exception for input that cannot be used: files, arguments, samples."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """A file, argument or sample is wrong; the message says what came, what was expected, where, and what to do.

    The command line prints the message on one line and exits with 2. Anything else that is raised is a defect of ours.
    Code that must tell faults apart asks for `code`, never for words of the message.

    Codes in use:
        box_inverted: A box has x1 > x2 or y1 > y2.
        overloaded: Too many questions wait; the same one may be asked again later.

    Attributes:
        code: Stable lower_snake_case name of the fault; None where nothing needs to tell it apart.
    """

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets worker processes send the error, whatever arguments a subclass is made with."""
        return ValueError.__new__, (type(self), *self.args), self.__dict__
