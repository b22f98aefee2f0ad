"""Benchmarks: a file each, or a folder where one brings data."""
