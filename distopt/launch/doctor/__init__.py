"""`distopt doctor`: what each rank finds, held against all others, and what is odd about it.

`probe` finds the facts of one rank, `examine` brings those of all to rank 0 and has them measure together,
`rules` and `compare` judge, `report` writes. Those that judge know neither torch nor a process group.
"""
