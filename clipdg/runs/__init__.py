"""From settings to a record: one run, sweeps and the engines that carry them out."""
