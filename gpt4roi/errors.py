"""The one exception that means "what came from outside cannot be used"."""


class InputError(ValueError):
    """A file, argument or sample is wrong; the message says what came, what was expected, where, and what to do.

    The command line prints the message on one line and exits with 2. Anything else that is raised is a defect of ours.
    """
