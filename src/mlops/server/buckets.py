"""The platform's buckets."""

from mlops.errors import MlopsError
from mlops.settings import SetupSettings

BUCKETS = ("mlflow", "prefect", "dvc")


def converge_buckets(settings: SetupSettings) -> list[str]:
    """Create the buckets that are missing; safe to run again.

    Args:
        settings: Where the object store is and its root keys.

    Returns:
        One line per bucket.

    Raises:
        MlopsError: The object store does not answer or refuses the keys.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=settings.aws_endpoint_url_s3,
        aws_access_key_id=settings.minio_root_user,
        aws_secret_access_key=settings.minio_root_password.get_secret_value(),
        region_name="us-east-1",
        config=Config(connect_timeout=5, read_timeout=30, proxies={}),
    )
    try:
        existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for bucket in BUCKETS:
            if bucket not in existing:
                client.create_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        raise MlopsError(
            f"S3 at {settings.aws_endpoint_url_s3}: {error}",
            hint="is it running, and are MINIO_ROOT_USER and MINIO_ROOT_PASSWORD right?",
        ) from None
    return [f"bucket {bucket}" for bucket in BUCKETS]
