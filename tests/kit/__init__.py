"""What tests share: ranks that stay alive, a real torchrun, TensorBoard in a real browser."""

from tests.kit.distributed import RankError, close_ranks, run_distributed, run_torchrun

__all__ = ["RankError", "close_ranks", "run_distributed", "run_torchrun"]
