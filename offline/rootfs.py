"""An image's root file system, made by mmdebstrap."""

import hashlib
import io
import os
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path

import go
import machine
from commands import run
from images import Image

# As in Debian's slim images, licences stay.
UNWANTED = (
    "/usr/share/doc/*",
    "/usr/share/groff/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)
WANTED = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")
# Builds on the image keep no downloads; those with a cache mount remove this file first, under the
# name that it has in the official images, too.
NO_DOWNLOADS = 'APT::Keep-Downloaded-Packages "false";\n'
NO_LANGUAGES = 'Acquire::Languages "none";\n'
MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"
# Files in the temporary folder, in which mmdebstrap runs.
APT_SETTINGS = "apt.conf"
OVERLAY = "overlay.tar"


@dataclass(frozen=True)
class File:
    """A file in an image."""

    path: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Plan:
    """All that a root file system is made from, but for Debian's packages.

    Args:
        command: mmdebstrap's.
        apt_settings: how its packages are fetched.
        files: what is ours and the machine's.
        module: a Go module whose program goes to /usr/bin; may be empty.
    """

    command: tuple[str, ...]
    apt_settings: str
    files: tuple[File, ...]
    module: str

    @property
    def hash(self) -> str:
        """Name it by its content."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def plan(image: Image, folder: Path) -> Plan:
    """Decide how an image's root file system is made.

    Args:
        image: the recipe.
        folder: holds the image's own programs, which go to /usr/bin; need not be there.
    """
    sources = machine.sources(image.suite)
    programs = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [File(f"usr/bin/{path.name}", path.read_bytes(), 0o755) for path in programs]
    files += [
        File(f"usr/local/share/ca-certificates/{name}", certificate.encode())
        for name, certificate in machine.authorities().items()
    ]
    if image.has_apt:
        fetching = NO_LANGUAGES + machine.apt_settings(lasting=True)
        files.append(File("etc/apt/apt.conf.d/docker-clean", NO_DOWNLOADS.encode()))
        files.append(File("etc/apt/apt.conf.d/machine", fetching.encode()))
        files += [File(str(path)[1:], path.read_bytes()) for path in machine.mirror_lists(sources)]
    if image.has_apt and sources:
        stanzas = "\n".join(source.stanza for source in sources)
        files.append(File("etc/apt/sources.list.d/debian.sources", stanzas.encode()))
    return Plan(_command(image, sources), machine.apt_settings(), tuple(files), image.module)


def make(plan: Plan, folder: Path) -> Path:
    """Make the archive of a root file system.

    Args:
        plan: how.
        folder: a temporary folder.

    Returns:
        A tar file in `folder`.

    Raises:
        Failure: why it could not be made.
    """
    # Without root, mmdebstrap's processes are other users.
    folder.chmod(0o755)
    files = list(plan.files)
    if plan.module:
        program = go.build(plan.module, folder)
        files.append(File(f"usr/bin/{program.name}", program.read_bytes(), 0o755))
        program.unlink()
    with tarfile.open(folder / OVERLAY, "w") as overlay:
        for file in files:
            member = tarfile.TarInfo(file.path)
            member.size, member.mode = len(file.content), file.mode
            overlay.addfile(member, io.BytesIO(file.content))
    (folder / APT_SETTINGS).write_text(plan.apt_settings)
    archive = folder / "rootfs.tar"
    run(list(plan.command), into=archive, folder=folder, environment={"TMPDIR": str(folder)})
    return archive


def _command(image: Image, sources: list[machine.Source]) -> tuple[str, ...]:
    hooks = [
        'rm "$1"/etc/apt/apt.conf.d/99mmdebstrap',
        *(['rm "$1"/etc/apt/sources.list'] if sources else []),
        f"tar-in {OVERLAY} /",
        _inside("update-ca-certificates"),
        _inside(image.finish),
    ]
    return (
        "mmdebstrap",
        "--format=tar",
        "--skip=cleanup/run",  # or it empties /run, in which PostgreSQL has a folder
        f"--mode={'unshare' if os.geteuid() else 'root'}",
        f"--variant={image.variant}",
        f"--include={','.join(image.packages)}",
        f"--aptopt={APT_SETTINGS}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in (*UNWANTED, *image.unwanted)),
        *(f"--dpkgopt=path-include={pattern}" for pattern in WANTED),
        # Or its apt chooses usrmerge, and with it 60 MB of Perl.
        *([f"--hook-dir={MERGED_USR}"] if image.suite == "bookworm" else []),
        f"--essential-hook={_inside(image.prepare)}",
        *(f"--customize-hook={hook}" for hook in hooks),
        image.suite,
        "-",
        *(source.line for source in sources),
    )


def _inside(script: str) -> str:
    """Make a hook of a shell script that runs in the root file system."""
    return f'chroot "$1" sh -euc {shlex.quote(script)}'
