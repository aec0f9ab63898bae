"""The one exception that people see: a sentence that names the file and says what to do."""


class HemsegError(Exception):
    """A mistake in the input, the weights or the set-up. ``str(error)`` is one clear sentence for the user."""
