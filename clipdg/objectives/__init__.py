"""Objectives: what a fit by gradient descent minimises over labelled images of several domains."""
