"""Versions of installed packages, which records and the keys of stored features name; each is looked up once."""

from functools import cache
from importlib import metadata

version = cache(metadata.version)
