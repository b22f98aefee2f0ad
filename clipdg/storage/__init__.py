"""Bytes on disk: published files, sharded arrays, the cache and downloads."""
