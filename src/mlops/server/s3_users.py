"""MinIO's users, one per role, each with a policy of its own.

What a role may do here is the whole of what it can do with the platform's data; nobody but the
prune command may delete code, and nobody can keep a writer from overwriting what it may write:
that is why agents check the code against its hash.
"""

import json
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mlops.errors import MlopsError
from mlops.settings import S3UsersSettings

_READ = ("s3:GetObject",)
_WRITE = ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
_DELETE = ("s3:DeleteObject",)


class Grant(NamedTuple):
    """What a role may do with the objects of a bucket, which it may also list.

    Args:
        bucket: The bucket.
        actions: Of S3, on objects.
        folder: Only below this prefix; empty: the whole bucket.
    """

    bucket: str
    actions: tuple[str, ...]
    folder: str = ""


GRANTS = {
    "mlflow": (Grant("mlflow", _READ + _WRITE + _DELETE),),
    "scheduler": (Grant("prefect", _READ + _WRITE, "flows/"),),
    "agent": (
        Grant("prefect", _READ, "flows/"),
        Grant("mlflow", _READ + _WRITE),
        Grant("dvc", _READ),
    ),
    "experimenter": (
        Grant("dvc", _READ + _WRITE + _DELETE),
        Grant("mlflow", _READ + _WRITE + _DELETE),
    ),
    "prune": (Grant("prefect", _READ + _DELETE, "flows/"),),
}


def policy(role: str) -> dict[str, Any]:
    """Return a role's policy, in the language of AWS's IAM."""
    statements: list[dict[str, Any]] = []
    for grant in GRANTS[role]:
        bucket = f"arn:aws:s3:::{grant.bucket}"
        lists: dict[str, Any] = {
            "Effect": "Allow",
            "Action": ["s3:ListBucket"],
            "Resource": [bucket],
        }
        if grant.folder:
            lists["Condition"] = {"StringLike": {"s3:prefix": [f"{grant.folder}*"]}}
        statements += [
            {"Effect": "Allow", "Action": ["s3:GetBucketLocation"], "Resource": [bucket]},
            lists,
            {
                "Effect": "Allow",
                "Action": list(grant.actions),
                "Resource": [f"{bucket}/{grant.folder}*"],
            },
        ]
    return {"Version": "2012-10-17", "Statement": statements}


def converge_s3_users(settings: S3UsersSettings) -> list[str]:
    """Create each role's policy and user, set right what differs, and remove replaced keys.

    Args:
        settings: Where MinIO is, its root's keys and the roles'.

    Returns:
        One line per role.

    Raises:
        MlopsError: MinIO does not answer or refuses.
    """
    import urllib3
    from minio import MinioAdmin
    from minio.credentials.providers import StaticProvider
    from minio.error import MinioAdminException

    address = urlsplit(settings.aws_endpoint_url_s3)
    admin = MinioAdmin(
        endpoint=address.netloc,
        credentials=StaticProvider(
            settings.minio_root_user, settings.minio_root_password.get_secret_value()
        ),
        secure=address.scheme == "https",
        http_client=urllib3.PoolManager(timeout=30, retries=False),
    )
    try:
        users = json.loads(admin.user_list())
        for role in GRANTS:
            name = f"mlops-{role}"
            access_key, secret_key = settings.key(role)
            admin.policy_add(name, policy=policy(role))
            admin.user_add(access_key, secret_key)
            if users.get(access_key, {}).get("policyName") != name:
                admin.policy_set(name, user=access_key)
            for user, what in users.items():
                if what.get("policyName") == name and user != access_key:
                    admin.user_remove(user)
    except (MinioAdminException, urllib3.exceptions.HTTPError) as error:
        raise MlopsError(
            f"MinIO at {settings.aws_endpoint_url_s3}: {error}",
            hint="is it running, and are MINIO_ROOT_USER and MINIO_ROOT_PASSWORD right?",
        ) from None
    return [f"S3 user {role}" for role in GRANTS]
