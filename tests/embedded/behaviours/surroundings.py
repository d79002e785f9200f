"""What a process finds around itself, as JSON can hold it."""

import ctypes
import faulthandler
import gc
import hashlib
import locale
import logging
import multiprocessing
import os
import random
import resource
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

STANDARD = {"0", "1", "2"}
LISTENING = "0A"  # as /proc/net/tcp has it


def look() -> dict[str, Any]:
    """Return what this process finds."""
    return {
        "process": _process(),
        "place": _folder(),
        "python": _python(),
        "alike": _alike(),
        "unlike": _unlike(),
        "open": _open(),
        "environment": dict(os.environ),
        "inherited": subprocess.run(  # by the C library's word, not by Python's
            ["env"], capture_output=True, text=True, check=True
        ).stdout,
        "timezone": time.tzname[0],
        "detail": logging.getLogger("prefect.flow_runs").getEffectiveLevel() == logging.DEBUG,
    }


def _process() -> dict[str, int]:
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "group": os.getpgrp(),
    }


def _folder() -> dict[str, Any]:
    return {
        "path": str(Path.cwd()),
        "files": sorted(path.name for path in Path.cwd().iterdir()),
        "beside": Path("beside.txt").read_text(),
        "code": __file__,
    }


def _python() -> dict[str, Any]:
    return {
        "executable": sys.executable,
        "prefix": sys.prefix,
        "path": sys.path,
        "hash_randomization": sys.flags.hash_randomization,
    }


def _alike() -> dict[str, Any]:
    """Return what should not differ between two workers."""
    main = sys.modules["__main__"]
    process = multiprocessing.current_process()
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    wakeup = signal.set_wakeup_fd(-1)
    umask = os.umask(0)
    os.umask(umask)
    return {
        "argv": [Path(argument).name for argument in sys.argv],
        "main": [main.__name__, Path(str(main.__file__)).parts[-2:]],
        "main_spec": main.__spec__.name if main.__spec__ else None,
        "optimize": sys.flags.optimize,
        "dev_mode": sys.flags.dev_mode,
        "signals": {name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
        "handlers": {
            name.name: getattr(handler, "__qualname__", str(handler))
            for name in signal.valid_signals()
            if isinstance(name, signal.Signals)
            and (handler := signal.getsignal(name)) is not signal.SIG_DFL
        },
        "wakeup": wakeup,
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "limits": {
            name: resource.getrlimit(getattr(resource, name))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
        "umask": umask,
        "nice": os.nice(0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "oom_score": Path("/proc/self/oom_score_adj").read_text(),
        "death_signal": _death_signal(),
        "input": os.read(0, 1).decode() if select.select([0], [], [], 0)[0] else "",
        "blocking": [os.get_blocking(1), os.get_blocking(2)],
        "terminal": [os.isatty(descriptor) for descriptor in range(3)],
        "streams": [sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.encoding],
        "faulthandler": faulthandler.is_enabled(),
        "garbage": [gc.isenabled(), gc.get_threshold()],
        "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(),
        "hooks": [sys.excepthook is sys.__excepthook__, threading.excepthook.__name__],
        "trace": [sys.gettrace() is None, sys.getprofile() is None],
        "locale": locale.setlocale(locale.LC_ALL),
        "timeout": socket.getdefaulttimeout(),
        "root_logger": [
            logging.getLogger().level,
            [type(handler).__name__ for handler in logging.getLogger().handlers],
            logging.root.manager.disable,
        ],
        "main_thread": threading.main_thread() is threading.current_thread(),
        "main_thread_number": threading.get_native_id() == os.getpid(),
        "start_method": multiprocessing.get_start_method(allow_none=True),
        "multiprocessing": [
            process.name,
            process.daemon,
            multiprocessing.parent_process() is None,
            [child.name for child in multiprocessing.active_children()],
        ],
        "left_behind": [
            name in sys.modules or name in os.environ for name in ("left_behind", "LEFT_BEHIND")
        ],
    }


def _death_signal() -> int:
    """Return which signal comes when the parent dies."""
    found = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(found))  # PR_GET_PDEATHSIG
    return found.value


def _unlike() -> dict[str, str]:
    """Return what should differ between any two processes."""
    import numpy as np  # noqa: PLC0415  # the agent, which runs the hooks, need not have it

    authkey = multiprocessing.current_process().authkey
    return {
        "random": str(random.random()),  # noqa: S311
        "numpy": str(np.random.rand()),  # noqa: NPY002
        "generator": str(np.random.default_rng().random()),
        "uuid1": str(uuid.uuid1()),
        "uuid4": str(uuid.uuid4()),
        "secrets": secrets.token_hex(),
        "folder": tempfile.mkdtemp(dir="."),
        "authkey": hashlib.sha256(authkey).hexdigest(),
    }


def _open() -> dict[str, list[str]]:
    """Return what is open besides the standard streams, by what is wrong with that."""
    targets = {}
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):  # the listing's own
            targets[descriptor] = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    more = {target for descriptor, target in targets.items() if descriptor not in STANDARD}
    shared = more & _open_elsewhere()
    return {
        "files": sorted(
            target
            for target in more
            # Prefect's threads may be opening a connection.
            if target.startswith("/") and not target.endswith((".crt", ".pem"))
        ),
        "listening": sorted(more & _listening_sockets()),
        "sockets": sorted(target for target in shared if target.startswith("socket:")),
        "pipes": sorted(target for target in shared if target.startswith("pipe:")),
    }


def _listening_sockets() -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                found.add(f"socket:[{fields[9]}]")
    return found


def _open_elsewhere() -> set[str]:
    """Return what other processes have open."""
    found = set()
    own = str(os.getpid())
    for process in os.listdir("/proc"):  # noqa: PTH208
        if not process.isdigit() or process == own:
            continue
        with suppress(OSError), os.scandir(f"/proc/{process}/fd") as descriptors:
            for descriptor in descriptors:
                with suppress(OSError):
                    found.add(os.readlink(descriptor.path))  # noqa: PTH115
    return found
