"""Starting, resuming and loading a run."""
