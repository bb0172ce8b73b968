"""Who we are at an object store and where it is: from the environment and ``~/.aws``, as the AWS command line reads them.

Keys stay in the memory of the process that uses them.  Where they came from is told, what they are never.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clustergauge.model import Scalar
from storage_io.errors import StorageError
from storage_io.object_errors import failure

CONNECT_S, ANSWER_S = 5, 20
"""Seconds for a connection, and for the next bytes of an answer that tells of the bucket."""
_FRESH = timedelta(minutes=10)
"""For so long are credentials used before they are asked for again; botocore renews those that end."""
_AMAZON = re.compile(r"(^|\.)amazonaws\.com(\.cn)?$")


class Login:
    """Credentials, endpoint and region.  Raises `StorageError` where there are none, or they can't be understood.

    ``reached``: what names the endpoint, for messages.  ``tls``: whether the way there is encrypted.
    """

    def __init__(self) -> None:
        import botocore.config
        import botocore.session

        try:
            session = botocore.session.Session()
            self.region = session.get_config_variable("region") or os.environ.get("AWS_REGION") or "us-east-1"
            self._credentials: Any = session.get_credentials()
            if self._credentials is not None:
                self._credentials.get_frozen_credentials()
            self.authorities: str | None = session.get_config_variable("ca_bundle") or None
            self.s3: Any = session.create_client(
                "s3",
                region_name=self.region,
                config=botocore.config.Config(
                    connect_timeout=CONNECT_S,
                    read_timeout=ANSWER_S,
                    retries={"total_max_attempts": 1},
                    s3={"addressing_style": "path"},
                ),
            )
        except Exception as error:  # noqa: BLE001 (whatever is wrong with the user's files)
            raise _unusable(error) from None
        if self._credentials is None:
            raise StorageError("no credentials", OSError(_HOW))
        self.endpoint: str = self.s3.meta.endpoint_url
        parts = urlsplit(self.endpoint)
        if parts.username or parts.password or parts.query:
            raise StorageError(
                "the endpoint", OSError("holds more than an address: credentials go into AWS_ACCESS_KEY_ID and so on")
            )
        self.tls = parts.scheme == "https"
        self.reached = _named_by(parts.hostname or "")

    def store(self, bucket: str, connections: int, answer_s: float, **choices: bool) -> Any:
        """A store of obstore that tries nothing twice by itself: whoever asks it counts."""
        from obstore.store import S3Store

        options: dict[str, Any] = {
            "allow_http": not self.tls,
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=answer_s),
            "pool_max_idle_per_host": str(connections),
        }
        try:
            if self.authorities:
                options["root_certificate"] = Path(self.authorities).read_bytes()
            return S3Store(
                bucket,
                endpoint=self.endpoint,
                region=self.region,
                unsigned_payload=self.tls,  # as the AWS tools do: TLS protects the content, a signature would hash it again
                client_options=options,
                retry_config={"max_retries": 0},
                credential_provider=self._credential,
                **choices,
            )
        except OSError as error:
            raise StorageError(f"cannot read AWS_CA_BUNDLE {self.authorities}", error) from None
        except Exception as error:  # noqa: BLE001
            raise failure("cannot use the endpoint", error, self.reached) from None

    def settings(self) -> dict[str, Scalar]:
        """What a record may say of the way to the store."""
        return {"fs_type": "s3", "tls": self.tls, "payload_signed": not self.tls}

    def frozen(self) -> Any:
        """The keys as they are now: ``access_key``, ``secret_key`` and ``token``."""
        return self._credentials.get_frozen_credentials()

    def _credential(self) -> dict[str, Any]:
        frozen = self.frozen()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _FRESH,
        }


_HOW = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of ~/.aws/credentials"


def _unusable(error: Exception) -> StorageError:
    """botocore's own words where they can hold no secret: names of profiles, files and providers."""
    name = type(error).__name__
    if name in ("ProfileNotFound", "PartialCredentialsError", "ConfigNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError"):
        return StorageError("no credentials", OSError(" ".join(str(error).split())[:300]))
    if name == "ConfigParseError":
        return StorageError(
            "no credentials", OSError(f"{getattr(error, 'kwargs', {}).get('path', '~/.aws')} cannot be understood")
        )
    if isinstance(error, ValueError) or name == "InvalidEndpointConfigurationError":
        return StorageError("the endpoint", OSError("is no address: AWS_ENDPOINT_URL is http://host:port or https://host"))
    return StorageError("no credentials", OSError(f"{name}: {_HOW}"))


def _named_by(host: str) -> str:
    """What names the endpoint."""
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(variable):
            return f"the endpoint is that of {variable}"
    if _AMAZON.search(host):
        return "no AWS_ENDPOINT_URL is set: the endpoint is Amazon's"
    return "the endpoint is that of the profile"
