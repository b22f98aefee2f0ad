"""The sections of a report: one plug-in a file."""
