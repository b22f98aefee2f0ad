"""Weights: read them exactly, name them, set their precision and keep them."""
