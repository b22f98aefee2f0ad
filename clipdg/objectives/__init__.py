"""Objectives: what a fit by gradient descent minimises. One file each."""
