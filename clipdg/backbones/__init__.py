"""Backbones: families of CLIPs and of image encoders, one file each."""
