"""Where a run keeps its files, and how they are written."""
