"""s3fs with retries in one place and reads that are never short. Knows no paths of ours.

Every request of the file system passes `_call_s3`, where it is retried as a `RetryPolicy` says;
the loops of s3fs and botocore are switched off. (aiohttp still sends a PUT, GET or DELETE a second
time at once when its connection breaks, unseen by all above it.)
"""

from __future__ import annotations

import contextlib
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from pipeline.storage_errors import ShortAnswerError
from pipeline.storage_retry import RetryPolicy, retried

_CHANGING = frozenset({"put_object", "complete_multipart_upload"})


class RetryingS3FileSystem(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """An s3fs file system whose requests follow a policy of ours."""

    retries = 1

    def __init__(self, *args: Any, policy: RetryPolicy | None = None, **kwargs: Any) -> None:
        self._policy = policy or RetryPolicy()
        limits = {
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "connect_timeout": self._policy.connect_timeout_s,
            "read_timeout": self._policy.read_timeout_s,
            "max_pool_connections": 32,
        }
        config = {**limits, **kwargs.pop("config_kwargs", {})}
        super().__init__(*args, config_kwargs=config, **kwargs)

    async def _call_s3(self, method: str, *arguments: Any, **kwargs: Any) -> Any:
        num_attempts = 0

        async def attempt() -> Any:
            nonlocal num_attempts
            num_attempts += 1
            return await S3FileSystem._call_s3(self, method, *arguments, **kwargs)

        upload_id = None
        try:
            answer = await retried(attempt, self._policy, changes=method in _CHANGING)
            upload_id = answer.get("UploadId")
            return answer
        finally:
            if method == "create_multipart_upload" and num_attempts > 1:
                await self._abort_strays(kwargs["Bucket"], kwargs["Key"], upload_id)

    call_s3 = sync_wrapper(_call_s3)

    async def _read_range(self, path: str, start: int, end: int, etag: str) -> bytes:
        """Bytes [start, end) of an object, all that it has, of the content that has this ETag."""
        bucket, key, _ = self.split_path(path)

        async def attempt() -> bytes:
            answer = await S3FileSystem._call_s3(
                self,
                "get_object",
                Bucket=bucket,
                Key=key,
                Range=f"bytes={start}-{end - 1}",
                **({"IfMatch": etag} if etag else {}),
            )
            with contextlib.closing(answer["Body"]) as body:
                data: bytes = await body.read()
            # As `bytes 90-99/100`; an object that ends before the range is no fault of the store.
            size = str(answer.get("ContentRange", "")).rpartition("/")[2]
            wanted = (min(end, int(size)) if size.isdecimal() else end) - start
            if len(data) != wanted:
                raise ShortAnswerError(
                    f"the store sent {len(data)} of the {wanted} bytes from byte {start}"
                )
            return data

        return await retried(attempt, self._policy)

    read_range = sync_wrapper(_read_range)

    def object_store_options(self) -> dict[str, str]:
        """How the Rust crate object_store opens the same store.

        It reads credentials from the environment, a profile or the instance's role by itself; of
        AWS's own endpoints it also finds the region.
        """
        options = {
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "aws_session_token": self.token,
        }
        client = self.s3.meta
        if "amazonaws.com" not in client.endpoint_url:
            options["aws_endpoint"] = client.endpoint_url
            options["aws_region"] = client.region_name or "us-east-1"
            options["allow_http"] = str(client.endpoint_url.startswith("http://")).lower()
        return {name: value for name, value in options.items() if value}

    async def _abort_strays(self, bucket: str, key: str, keep: str | None) -> None:
        """End uploads of this key that were begun by requests whose answers were lost."""
        with contextlib.suppress(Exception):  # A lifecycle rule collects what stays.
            listed = await S3FileSystem._call_s3(
                self, "list_multipart_uploads", Bucket=bucket, Prefix=key
            )
            for upload in listed.get("Uploads", ()):
                if upload["Key"] == key and upload["UploadId"] != keep:
                    await self._abort_mpu(bucket, key, upload["UploadId"])
