"""Packs photos into shards, reads them back by index, verifies them; runs without torch."""

__version__ = "0.1.0"
