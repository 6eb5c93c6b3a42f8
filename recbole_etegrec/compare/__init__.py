"""Several models on one dataset, one split and one evaluator, each run in a process of its own.

`plan` says what is to run and refuses what cannot, `command` starts it, `worker` is one run, and
`table` makes the comparison of what the runs have left in their directories.
"""
