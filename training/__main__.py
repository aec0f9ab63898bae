"""``python -m training``, or ``hemseg-train`` of an installed wheel."""

from __future__ import annotations

import sys

from hemseg.errors import HemsegError, system_error

from .commands.app import app


def main() -> None:
    """Run the command line; a mistake of the user ends in one sentence."""
    try:
        app(standalone_mode=True)
    except HemsegError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if not error.strerror:  # not the system's: a library's, or a worker's, whose text is a traceback
            raise
        print(f"error: {system_error(error)}; check path, permissions and disk.", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("hemseg", (__package__ or "").split(".")[0]):
            raise
        print(f"error: training needs {error.name}; `pip install 'hemseg[training]'`.", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
