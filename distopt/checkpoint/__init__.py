"""Checkpoints: written by torch.distributed.checkpoint, committed by a rename, found again.

`directory` and `resume` do without torch, so that a run can be judged before it is imported.
"""
