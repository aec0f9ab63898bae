"""The one exception that people see: a sentence that names the file and says what to do."""


class HemsegError(Exception):
    """A mistake in the input, the weights or the set-up. ``str(error)`` is one clear sentence for the user.

    It can be printed and written anywhere: bytes of a file name that are no UTF-8 appear escaped.
    """

    def __init__(self, sentence: str = "") -> None:
        super().__init__(sentence.encode("utf-8", "backslashreplace").decode())


def first_line(error: BaseException, most: int = 120) -> str:
    """What a library's error says, cut to one line for a sentence; its type when it says nothing."""
    return str(error).splitlines()[0][:most] if str(error) else type(error).__name__
