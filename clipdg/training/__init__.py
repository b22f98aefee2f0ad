"""Fitting with Lightning: the classifier, its schedules and its trainer."""
