"""The one exception that people see: a sentence that names the file and says what to do."""

from hemseg.names import printable


class HemsegError(Exception):
    """A mistake in the input, the weights or the set-up. ``str(error)`` is one clear sentence for the user.

    What a terminal would obey in it (names of files may hold that) is escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def first_line(error: BaseException, most: int = 120) -> str:
    """What a library's error says, cut to one line for a sentence; its type when it says nothing."""
    return str(error).splitlines()[0][:most] if str(error) else type(error).__name__
