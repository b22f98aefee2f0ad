"""The numbers that a set of predictions gets, one file each; a run evaluates all of them."""
