"""Where uv is."""

import shutil

from mlops.errors import MlopsError


def find_uv() -> str:
    """Return the path of this environment's uv, or else of the one on PATH.

    Raises:
        MlopsError: There is none.
    """
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        if found := shutil.which("uv"):
            return found
    raise MlopsError("uv is not installed here", hint="install the extra `agent`: mlops[agent]")
