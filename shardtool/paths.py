"""Paths under the packed folder are bytes; as text they are UTF-8 whatever the locale says."""

from __future__ import annotations


def path_text(path: bytes) -> str:
    """The path as text; bytes that are not UTF-8 become lone surrogates, and come back."""
    return path.decode("utf-8", "surrogateescape")


def path_bytes(text: str) -> bytes:
    """The inverse of `path_text`."""
    return text.encode("utf-8", "surrogateescape")
