"""What EC2's error codes mean, as errors that name the place and say what to do.

Codes: docs.aws.amazon.com/ec2/latest/devguide/ec2-api-error-codes.html. What is not listed is a request
that EC2 will never take as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import (
    AuthFailed,
    BackendError,
    Busy,
    NoCapacity,
    Quota,
    Rejected,
    Unreachable,
)

SOLD_OUT = frozenset(
    {
        "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity",
        "InsufficientReservedInstanceCapacity", "ReservationCapacityExceeded", "UnfulfillableCapacity",
        "InsufficientFreeAddressesInSubnet", "InsufficientVolumeCapacity", "InsufficientAddressCapacity",
        "SpotMaxPriceTooLow", "Unsupported",
    }
)  # fmt: skip
LIMITS = frozenset(
    {
        "VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "VolumeLimitExceeded",
        "InstanceQuotaExceeded", "PendingVerification", "PlacementGroupLimitExceeded", "AddressLimitExceeded",
        "SecurityGroupLimitExceeded", "NetworkInterfaceLimitExceeded",
    }
)  # fmt: skip
DENIED = frozenset(
    {
        "AuthFailure", "UnauthorizedOperation", "InvalidClientTokenId", "SignatureDoesNotMatch",
        "ExpiredToken", "ExpiredTokenException", "RequestExpired", "OptInRequired", "Blocked",
        "UnrecognizedClientException", "AccessDenied", "MissingAuthenticationToken",
    }
)  # fmt: skip
LATER = frozenset(
    {
        "RequestLimitExceeded", "Throttling", "ThrottlingException", "InternalError", "InternalFailure",
        "ServiceUnavailable", "Unavailable", "ResourceCountExceeded", "InvalidPlacementGroup.Unknown",
    }
)  # fmt: skip
GONE = frozenset({"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"})


def explained(code: str, message: str, *, backend: str, where: str) -> BackendError:
    """Return what an error of EC2 means; ``where`` is the region, or the kind of machine and zone.

    >>> error = explained("VcpuLimitExceeded", "…", backend="aws", where="g6.xlarge in us-east-1a")
    >>> type(error).__name__, error.what
    ('Quota', "g6.xlarge in us-east-1a: the account's limit is reached (VcpuLimitExceeded)")
    """
    if code in SOLD_OUT:
        fix = "allow another zone, region or instance type"
        return NoCapacity(f"{where}: none to be had now ({code})", backend=backend, fix=fix)
    if code in LIMITS:
        fix = "ask for a higher limit in Service Quotas of that region, or allow another region"
        return Quota(f"{where}: the account's limit is reached ({code})", backend=backend, fix=fix)
    if code in DENIED:
        if "Expired" in code:
            return AuthFailed(
                f"{where}: the credentials have expired ({code})", backend=backend,
                fix="sign in again, for example: aws sso login",
            )  # fmt: skip
        fix = "check the credentials, their rights (ec2:RunInstances …), and that the region is enabled"
        return AuthFailed(f"{where}: refused ({code})", backend=backend, fix=fix)
    if code in LATER:
        return Busy(f"{where}: asked to come back later ({code})", backend=backend)
    return Rejected(f"{where}: {message.rstrip('.')} ({code})", backend=backend, fix="correct what it names")


@contextmanager
def translated(*, backend: str, where: str) -> Iterator[None]:
    """Let nothing of botocore's out."""
    from botocore.exceptions import (  # heavy: only where a call is made
        BotoCoreError,
        ClientError,
        ConnectionError,
        CredentialRetrievalError,
        HTTPClientError,
        NoCredentialsError,
        NoRegionError,
        PartialCredentialsError,
        ProfileNotFound,
        TokenRetrievalError,
        UnauthorizedSSOTokenError,
    )
    from botocore.parsers import ResponseParserError

    fix = "set AWS_PROFILE or AWS_ACCESS_KEY_ID, or profile of this backend; see: aws configure"
    try:
        yield
    except ClientError as error:
        said = error.response["Error"]
        raise explained(said["Code"], said.get("Message", ""), backend=backend, where=where) from None
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound, NoRegionError) as error:
        raise AuthFailed(f"{where}: {error}", backend=backend, fix=fix) from None
    except (CredentialRetrievalError, TokenRetrievalError, UnauthorizedSSOTokenError) as error:
        raise AuthFailed(f"{where}: {error}", backend=backend, fix="sign in again: aws sso login") from None
    except (HTTPClientError, ConnectionError, ResponseParserError) as error:
        raise Unreachable(
            f"{where}: EC2 does not answer ({error})", backend=backend,
            fix="check the network, the region's name and endpoint_url",
        ) from None  # fmt: skip
    except BotoCoreError as error:
        raise BackendError(f"{where}: {error}", backend=backend, fix=fix) from None
