"""Agreement: ranks with other groups would step other parameters together, and no one would notice."""

from __future__ import annotations

import torch
import torch.distributed as dist

from distopt import comm
from distopt.errors import ConfigError
from distopt.optim.plan import Plan


def check_agreement(plan: Plan) -> None:
    """Proves that every rank has made the same plan, by one collective of 32 bytes a rank.

    Raises:
        ConfigError: On every rank, with the first rank whose plan is not rank 0's, the first parameter that
            differs, and both verdicts.
    """
    digest = torch.frombuffer(bytearray.fromhex(plan.digest), dtype=torch.uint8)
    digests = [torch.empty_like(digest) for _ in range(dist.get_world_size())]
    dist.all_gather(digests, digest)
    odd = next((rank for rank, other in enumerate(digests) if not other.equal(digests[0])), None)
    if odd is None:
        return
    plans = comm.gather(_verdicts(plan))
    ours, theirs = plans[0], plans[odd]
    what = next((what for what in ours | theirs if ours.get(what) != theirs.get(what)), None)
    if what is None:  # the same parameters, in another order
        place, mine, other = next(
            (i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b
        )
        difference = f"parameter {place} of the plan is {mine} on rank 0, but {other} on rank {odd}"
    else:
        absent = "no such parameter"
        difference = (
            f"{what} is {ours.get(what, absent)} on rank 0, but {theirs.get(what, absent)} on rank {odd}"
        )
    raise ConfigError(
        "optimizer",
        f"the ranks do not agree on the groups: {difference}",
        allowed="the same config, model and code on every rank",
    )


def _verdicts(plan: Plan) -> dict[str, str]:
    """What the digest is made of, in words, by parameter and in the plan's order."""
    verdicts = {"the optimizer": plan.optimizer}
    for group in plan.groups:
        options = [f"{name} {value}" for name, value in group.options.items()]
        part = [f"stepped by {group.optimizer}"] if group.part else []
        rules = [f"by {' and '.join(group.rules)}"] if group.rules else []
        why = [f"{option}: {reason}" for option, reason in group.why.items()]
        for entry in group.entries:
            names = " = ".join([f"shape {list(entry.shape)}", *entry.aliases])
            verdicts[entry.fqn] = f"{group.name} ({'; '.join([*options, *part, *rules, *why, names])})"
    for group in plan.groups:
        own = [f"{name} {value}" for name, value in group.defaults.items() if name not in group.options]
        verdicts[f"what else group {group.name} has"] = ", ".join(own) or "nothing"
    shapes = {fqn: f" (shape {list(shape)})" for fqn, shape in plan.frozen_shapes.items()}
    return verdicts | {fqn: f"frozen{shapes.get(fqn, '')}" for fqn in plan.frozen}
