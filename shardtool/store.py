"""Where files are: a local folder or a URL that fsspec understands.

Only schemes that read and write files are let through: a URL never starts a program or unpacks an archive.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import fsspec

from shardtool.errors import UsageError

SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "sftp", "hf", "memory")


def is_remote(url: str) -> bool:
    """Whether this is a URL, not a path of this machine."""
    return "://" in url


def shown(url: str) -> str:
    """The URL without password and query: signed URLs and tokens never reach a screen or a log."""
    if not is_remote(url):
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path inside it.

    Raises UsageError for a scheme that is not in SCHEMES, or whose package is not installed.
    """
    scheme = url.partition("://")[0] if is_remote(url) else "file"
    if scheme not in SCHEMES or "::" in url:
        raise UsageError(
            f"no way to read {scheme}:// URLs", where=shown(url), cure=f"use one of {', '.join(SCHEMES)}"
        )
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error), where=shown(url), cure="install the package that it needs") from error
    return found
