"""Weights in and out: key maps of the published formats, sharded folders to one file and back."""
