"""CLIP families and image encoders, one file each."""
