"""What each image is made of.

The tags are those that the Dockerfiles and compose files name (a unit test compares them).
"""

from dataclasses import dataclass

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POSTGRES = "/usr/lib/postgresql/17"


@dataclass(frozen=True)
class Image:
    """A recipe.

    Args:
        name: its name on the command line and of its folder here.
        tag: the tag under which the image is asked for.
        suite: the Debian suite that it is made from.
        packages: Debian packages besides the essential ones.
        config: Dockerfile instructions for the image's configuration.
        variant: mmdebstrap's; `essential` leaves apt out.
        unwanted: path patterns that dpkg leaves out, now and in builds on this image.
        prepare: shell command in the root file system, before `packages` are installed.
        finish: shell command in the root file system, after everything else.
        module: a Go module whose program goes to /usr/bin.
    """

    name: str
    tag: str
    suite: str
    packages: tuple[str, ...]
    config: tuple[str, ...]
    variant: str = "minbase"
    unwanted: tuple[str, ...] = ()
    prepare: str = "true"
    finish: str = "true"
    module: str = ""

    @property
    def has_apt(self) -> bool:
        """Whether builds on it can install packages."""
        return self.variant != "essential"

    @property
    def ingredients(self) -> str:
        """What it is made from, for people."""
        return f"Debian {self.suite}" + (f" and {self.module}" if self.module else "")


PYTHON_IMAGE = Image(
    name="python",
    tag="python:3.11.14-slim-bookworm",
    suite="bookworm",
    packages=("ca-certificates", "python3", "python3-pip", "python3-venv"),
    config=(f"ENV PATH={PATH}", "ENV LANG=C.UTF-8", 'CMD ["python3"]'),
    # In an image nobody else manages Python's packages.
    unwanted=("/usr/lib/python3*/EXTERNALLY-MANAGED",),
    finish="""
        for name in python python3 python3.11; do
            ln -s /usr/bin/python3.11 /usr/local/bin/$name
        done
    """,
)

POSTGRES_IMAGE = Image(
    name="postgres",
    tag="postgres:17.11-trixie",
    suite="trixie",
    packages=("ca-certificates", "postgresql-17", "xz-utils", "zstd"),
    config=(
        f"ENV PATH={POSTGRES}/bin:{PATH}",
        # The official image's: databases keep their collation when one replaces the other.
        "ENV LANG=en_US.utf8",
        "ENV PG_MAJOR=17",
        "ENV PGDATA=/var/lib/postgresql/data",
        "VOLUME /var/lib/postgresql/data",
        'ENTRYPOINT ["docker-entrypoint.sh"]',
        "STOPSIGNAL SIGINT",
        "EXPOSE 5432",
        'CMD ["postgres"]',
    ),
    # Just-in-time compilation: PostgreSQL goes without where it is missing, and saves 180 MB.
    unwanted=(
        "/usr/lib/*/libLLVM*",
        f"{POSTGRES}/lib/bitcode/*",
        f"{POSTGRES}/lib/llvmjit*",
    ),
    # The official image's ids, which own the volumes; and no cluster in the image.
    prepare="""
        echo 'postgres:x:999:' >>/etc/group
        echo 'postgres:x:999:999::/var/lib/postgresql:/bin/bash' >>/etc/passwd
        echo 'postgres:!:20000::::::' >>/etc/shadow
        mkdir -p /etc/postgresql-common/createcluster.d
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/image.conf
    """,
    finish=f"""
        localedef --inputfile=en_US --charmap=UTF-8 --force en_US.UTF-8
        rm -rf /usr/share/i18n
        rm -f /etc/ssl/private/ssl-cert-snakeoil.key /etc/ssl/certs/ssl-cert-snakeoil.pem
        find -L /etc/ssl/certs -type l -delete
        sed -i "s/^#listen_addresses = 'localhost'/listen_addresses = '*'/" \\
            /usr/share/postgresql/17/postgresql.conf.sample
        grep -q "^listen_addresses = '\\*'" /usr/share/postgresql/17/postgresql.conf.sample
        {POSTGRES}/bin/postgres --version | grep -F ' 17.'
        mkdir -p /docker-entrypoint-initdb.d /var/lib/postgresql/data /run/postgresql
        chown -R postgres:postgres /var/lib/postgresql /run/postgresql
        chmod 1777 /var/lib/postgresql/data
        chmod 3777 /run/postgresql
    """,
)

MINIO_IMAGE = Image(
    name="minio",
    tag="pgsty/silo:RELEASE.2026-09-16T00-00-00Z",
    suite="trixie",
    packages=("ca-certificates", "minio-client"),
    config=(
        f"ENV PATH={PATH}",
        "ENV LANG=C.UTF-8",
        "ENV MC_CONFIG_DIR=/tmp/.mc",
        # It would ask its maker's server for newer releases.
        "ENV MINIO_UPDATE=off",
        "VOLUME /data",
        'ENTRYPOINT ["/usr/bin/docker-entrypoint.sh"]',
        "EXPOSE 9000",
        'CMD ["minio"]',
    ),
    variant="essential",
    finish="ln -s minio-client /usr/bin/mc && mkdir /data",
    module="github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
)

IMAGES = {image.name: image for image in (PYTHON_IMAGE, POSTGRES_IMAGE, MINIO_IMAGE)}
