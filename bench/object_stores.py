"""The S3 server of a benchmark: the embedded platform's own, or MinIO; and boto3 as the peer."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from measure import announce, timed_command, wait_until
from platform_under_test import Platform, clean_environment
from stock import answers

from mlops.local.home import HOST, addresses
from mlops.ops.stacks import KNOWN

ObjectStoreName = Literal["minio", "rclone"]


def object_store_options() -> argparse.ArgumentParser:
    """Return the option that chooses the server."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        *("--s3",),
        choices=("minio", "rclone"),
        default="minio",
        help="%(default)s, as people run it (needs Docker and the image), or rclone",
    )
    return options


@contextmanager
def object_store(name: ObjectStoreName, platform: Platform) -> Iterator[None]:
    """Put an S3 server behind a platform that is up: the one that it has, or MinIO.

    MinIO comes with Docker, as in the server stack: from the same image, with the same users and
    policies. It listens where the platform's own server did, so that all the rest runs on.

    Args:
        name: Which server.
        platform: All of whose objects are out of reach meanwhile, when it is MinIO.
    """
    if name == "rclone":
        yield
        return
    _, state, credentials = platform.situation
    environment = clean_environment() | {
        **{secret.upper(): value for secret, value in credentials.model_dump().items()},
        "AWS_ENDPOINT_URL_S3": addresses(state.ports).s3,
        "POSTGRES_HOST": HOST,
        "POSTGRES_PORT": str(state.ports.postgres),
    }
    container = f"mlops-bench-{state.instance[:12]}"
    announce("MinIO, in the place of rclone")
    platform.stop("s3")
    try:
        timed_command(
            [
                # On the host's network: nothing lies between, as with rclone.
                *("docker", "run", "--rm", "--detach", "--name", container, "--network", "host"),
                *("--env", "MINIO_ROOT_USER", "--env", "MINIO_ROOT_PASSWORD"),
                *("--env", "MINIO_BROWSER=off", KNOWN["MINIO_IMAGE"].default),
                *("server", "/data", "--address", f"{HOST}:{state.ports.s3}"),
            ],
            environment,
        )
        wait_until(lambda: answers(f"{addresses(state.ports).s3}/minio/health/ready"), "MinIO")
        timed_command([sys.executable, "-m", "mlops", "server", "setup", "--s3-users"], environment)
        yield
    finally:
        subprocess.run(
            ["docker", "rm", "--force", "--volumes", container],
            env=dict(os.environ),
            capture_output=True,
            check=False,
        )


class Transfers:
    """boto3's own transfers, as fast as plain Python gets.

    Args:
        environment: A role's: where the server is, and its keys.
        bucket: The bucket.
        threads: Requests at once, over all files.
    """

    def __init__(self, environment: Mapping[str, str], bucket: str, threads: int) -> None:
        self._bucket = bucket
        self._settings = TransferConfig(max_concurrency=threads)
        self._client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(
                max_pool_connections=threads,
                proxies={},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def upload(self, files: Mapping[str, Path]) -> None:
        """Upload files, each to its key."""
        with create_transfer_manager(self._client, self._settings) as manager:
            sent = [manager.upload(str(path), self._bucket, key) for key, path in files.items()]
            for future in sent:
                future.result()

    def download(self, files: Mapping[str, Path]) -> None:
        """Download objects, each to its file."""
        with create_transfer_manager(self._client, self._settings) as manager:
            sent = [manager.download(self._bucket, key, str(path)) for key, path in files.items()]
            for future in sent:
                future.result()

    def keys(self, prefix: str) -> list[str]:
        """Return all keys that begin so."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix
        )
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def remove(self, prefix: str) -> None:
        """Remove all objects whose keys begin so."""
        keys = self.keys(prefix)
        for start in range(0, len(keys), 1000):
            objects = [{"Key": key} for key in keys[start : start + 1000]]
            self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects})
