"""Processes by a mark in their environment, which children inherit.

A process number alone proves nothing, as the kernel gives it out again.
"""

import contextlib

import psutil


def own_line() -> set[psutil.Process]:
    """Return the calling process and its parents, which may have inherited any mark."""
    me = psutil.Process()
    return {me, *me.parents()}


def find_marked(variable: str, value: str) -> list[psutil.Process]:
    """Return the processes that carry a mark.

    The calling process and its parents are left out.

    Args:
        variable: Name of the environment variable.
        value: Its value.
    """
    spared = own_line()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or not ours to look into
            if process.environ().get(variable) == value and process not in spared:
                found.append(process)
    return found
