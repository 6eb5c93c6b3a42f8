"""Run directories, logs, digests and atomic files."""
