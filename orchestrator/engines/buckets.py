"""Buckets that a trainer's own Python can read and write, by the scheme of their URLs."""

from __future__ import annotations

from collections.abc import Mapping

PACKAGES: Mapping[str, str] = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}
"""What fsspec needs for a kind of bucket (its ``known_implementations``, fsspec 2026.4)."""


def scheme_of(text: str) -> str:
    """Return the scheme of a URL, "" for what is none.

    >>> scheme_of("s3://bucket/rows.jsonl"), scheme_of("org/data")
    ('s3', '')
    """
    scheme, found, _ = text.partition("://")
    return scheme if found else ""


def is_bucket(text: str) -> bool:
    """Say whether a URL leads into a bucket.

    >>> is_bucket("gs://bucket/runs"), is_bucket("/runs"), is_bucket("run://sft")
    (True, False, False)
    """
    return scheme_of(text) in PACKAGES
