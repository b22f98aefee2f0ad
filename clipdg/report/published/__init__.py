"""Published numbers that a report sets beside its own."""
