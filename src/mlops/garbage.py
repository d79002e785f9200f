"""How often Python's collector looks for garbage in our own processes."""

import atexit
import gc

NEW_OBJECTS = 50_000  # Python's own: 700


def collect_seldom() -> None:
    """Let the collector look through new objects when there are many, and through none at the end.

    Importing Prefect or MLflow makes hundreds of thousands that stay. To look through them again
    and again is a fifth of the import, and to do so when the process ends another fifth.
    """
    gc.set_threshold(NEW_OBJECTS)
    atexit.register(gc.freeze)
