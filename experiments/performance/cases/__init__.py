"""One file a question; each has CASES, a tuple of harness.Case, and is found by itself."""
