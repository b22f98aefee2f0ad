"""One way to evaluate: for a script, for a run and in the middle of a fit."""
