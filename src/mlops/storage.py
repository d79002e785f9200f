"""The S3 client: the object store as one role sees it, with errors that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as S3ConnectionError

from mlops.errors import MlopsError
from mlops.settings import S3Settings

TRANSFER_THREADS = 8


class ObjectNotFoundError(MlopsError):
    """The object, or its bucket, does not exist."""


class ObjectStore:
    """One bucket of the object store. Safe to share between threads.

    Args:
        settings: Address and identity.
        bucket: Name of the bucket.
    """

    def __init__(self, settings: S3Settings, bucket: str) -> None:
        self.bucket = bucket
        self._endpoint = settings.aws_endpoint_url_s3
        self._client = boto3.client(
            "s3",
            endpoint_url=settings.aws_endpoint_url_s3,
            aws_access_key_id=settings.aws_access_key_id,
            aws_secret_access_key=settings.aws_secret_access_key.get_secret_value(),
            region_name="us-east-1",  # servers that are not AWS's ignore it, boto3 asks for it
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=TRANSFER_THREADS,
                s3={"addressing_style": "path"},
                # Servers that are not AWS's reject the newer default checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def uri(self, key: str) -> str:
        """Return `s3://bucket/key`."""
        return f"s3://{self.bucket}/{key}"

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of each object under a prefix, by key."""
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix
            )
            return {
                item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])
            }

    def read(self, key: str) -> bytes:
        """Return an object's bytes.

        Raises:
            ObjectNotFoundError: There is no such object.
        """
        with self._errors(key):
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return body

    def write(self, key: str, body: bytes) -> None:
        """Write an object whole."""
        with self._errors(key):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def upload(self, path: Path, key: str) -> None:
        """Upload a file, in parts when it is large."""
        with self._errors(key):
            self._client.upload_file(str(path), self.bucket, key)

    def download(self, key: str, path: Path) -> None:
        """Download an object into a file, in parallel parts when it is large."""
        with self._errors(key):
            self._client.download_file(self.bucket, key, str(path))

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn boto3's errors into ones that name the address, the object and the mend."""
        try:
            yield
        except (S3ConnectionError, HTTPClientError) as error:
            raise MlopsError(
                f"the object store at {self._endpoint} does not answer: {error}",
                hint="is it up? `./mlops local status` on a checkout; "
                "else check AWS_ENDPOINT_URL_S3",
            ) from error
        except S3UploadFailedError as error:
            cause = error.__context__
            if isinstance(cause, ClientError):
                raise self._refusal(cause, key) from error
            raise MlopsError(f"{self.uri(key)}: upload failed: {error}") from error
        except ClientError as error:
            raise self._refusal(error, key) from error
        except BotoCoreError as error:
            raise MlopsError(f"{self.uri(key)}: {error}") from error

    def _refusal(self, error: ClientError, key: str) -> MlopsError:
        detail: dict[str, Any] = error.response.get("Error", {})
        code = str(detail.get("Code", ""))
        if code in {"404", "NoSuchKey", "NoSuchBucket"}:
            missing = f"s3://{self.bucket}" if code == "NoSuchBucket" else self.uri(key)
            return ObjectNotFoundError(f"{missing}: does not exist at {self._endpoint}")
        if code in {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
            return MlopsError(
                f"{self.uri(key)}: {self._endpoint} refused these S3 credentials ({code})",
                hint="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        return MlopsError(f"{self.uri(key)}: {self._endpoint} answered {code}: {detail}")
