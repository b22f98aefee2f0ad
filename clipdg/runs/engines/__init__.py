"""Where a sweep's runs execute, one file each: processes of this machine, a Ray cluster, Slurm."""
