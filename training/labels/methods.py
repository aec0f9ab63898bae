"""The methods of differential prediction, by the name that ``pseudolabels.method`` has. A new one is a line here."""

from __future__ import annotations

from hemseg.errors import HemsegError

from .clusters import choose_cluster
from .components import choose_components
from .differential import Method

METHODS: dict[str, Method] = {
    "clusters": choose_cluster,  # the paper's
    "components": choose_components,  # best's
}


def choose_method(name: str) -> Method:
    """A method by its name.

    Raises:
        HemsegError: there is none of this name.
    """
    if name not in METHODS:
        raise HemsegError(f"pseudolabels.method {name!r} is not known; known: {', '.join(METHODS)}.")
    return METHODS[name]
