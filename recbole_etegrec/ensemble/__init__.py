"""`recbole-etegrec ensemble`: several runs joined to one that ranks better than each."""
