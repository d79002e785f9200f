"""What is taken from this machine as it is: its tools, apt's configuration, its authorities."""

import base64
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from commands import Failure, run

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
# Debian's own, which every image has from the package ca-certificates.
PUBLIC_AUTHORITIES = Path("/usr/share/ca-certificates")

RELEASE = re.compile(r"(bullseye|bookworm|trixie|forky|duke)(|-updates|-security)")
# How packages are fetched; those of the second kind also in builds on the images.
FETCHING = re.compile(r"Acquire::(?i:http|https|Check-\w|Force|Retries)")
LASTING = re.compile(r"Acquire::(?i:Check-|Force|Retries)")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """An apt source: the component main of one suite of Debian."""

    address: str
    suite: str

    @property
    def line(self) -> str:
        """For mmdebstrap, with the credentials that the address may hold."""
        return f"deb [signed-by={KEYRING}] {self.address} {self.suite} main"

    @property
    def stanza(self) -> str:
        """For a file in an image, without credentials."""
        address = re.sub(r"//[^/@]*@", "//", self.address)
        return (
            f"Types: deb\nURIs: {address}\nSuites: {self.suite}\nComponents: main\n"
            f"Signed-By: {KEYRING}\n"
        )


def check() -> None:
    """Look for the tools.

    Raises:
        Failure: one is missing; the message names the package.
    """
    if shutil.which("docker") is None:
        raise Failure("docker is not installed: Debian's packages are docker.io and docker-cli")
    if shutil.which("mmdebstrap") is None:
        raise Failure("mmdebstrap is not installed: apt-get install mmdebstrap")
    if not KEYRING.exists():
        raise Failure(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    if os.geteuid() and shutil.which("newuidmap") is None:
        raise Failure(
            "not root: run it as root, or install uidmap and give the user a range in /etc/subuid "
            "and /etc/subgid"
        )


def sources(suite: str) -> list[Source]:
    """Derive a suite's sources from the machine's own, whichever suite of Debian those name.

    Args:
        suite: a Debian suite's code name.

    Returns:
        Nothing where the machine has none of Debian's: mmdebstrap then uses its default.
    """
    return list(dict.fromkeys(Source(address, suite + part) for address, part in _debian()))


@cache
def _debian() -> list[tuple[str, str]]:
    """List Debian's repositories here: the address, and the part of the suite's name after its."""
    query = ["apt-get", "indextargets", "Created-By: Packages", "--format"]
    repository = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    # Who is behind a source is known only of those whose lists have been downloaded.
    known = run([*query, f"{repository} $(ORIGIN)"]).splitlines()
    foreign = {line.rpartition(" ")[0] for line in known if not line.endswith(" Debian")}
    found = []
    # Among no lists at all, which are a second's work to read and say nothing of the rest.
    no_lists = ("--no-release-info", "--option", "Dir::State::lists=/nonexistent")
    for line in run([*query, repository, *no_lists]).splitlines():
        address, release, component = line.split()
        name = RELEASE.fullmatch(release)
        if name and component == "main" and line not in foreign:
            found.append((address, name[2]))
    return found


def apt_settings(*, lasting: bool = False) -> str:
    """Return apt's settings for fetching: all of them, or only those that images keep.

    Proxies and certificates are not kept: builds are told by Docker's own configuration.
    """
    wanted = LASTING if lasting else FETCHING
    lines = run(["apt-config", "dump"]).splitlines()
    return "".join(f"{line}\n" for line in lines if wanted.match(line) and '""' not in line)


@cache
def authorities() -> dict[str, str]:
    """Return the certificates that this machine trusts besides the public ones, by file name."""
    if not AUTHORITIES.exists():
        return {}
    public = "".join(path.read_text() for path in PUBLIC_AUTHORITIES.rglob("*.crt"))
    known = set(_certificates(public))
    return {
        f"machine-{hashlib.sha256(own).hexdigest()[:12]}.crt": (
            f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(own).decode()}"
            "-----END CERTIFICATE-----\n"
        )
        for own in _certificates(AUTHORITIES.read_text())
        if own not in known
    }


def _certificates(text: str) -> list[bytes]:
    return [base64.b64decode(body) for body in CERTIFICATE.findall(text)]


def mirror_lists(sources: list[Source]) -> list[Path]:
    """Return the files with mirrors that sources name (`mirror+file:`)."""
    addresses = [source.address for source in sources]
    return [
        Path(address.removeprefix("mirror+file:").removesuffix("/"))
        for address in addresses
        if address.startswith("mirror+file:")
    ]
