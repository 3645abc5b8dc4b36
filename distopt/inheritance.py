"""What a run takes over from a checkpoint, and what it does not: the config wins, and all is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from distopt.checkpoint.reader import TensorReader
from distopt.checkpoint.rename import outstanding, renamed
from distopt.checkpoint.state import read_json
from distopt.config import Config, document
from distopt.errors import ConfigError
from distopt.optim import Configured, Difference, Plan, Prebuilt, compare
from distopt.optim.changes import described


@dataclass(frozen=True)
class Inheritance:
    """How a checkpoint is to be read, and what this run does otherwise than the one that wrote it."""

    renaming: Mapping[str, str] = field(default_factory=dict)
    """Of what has other names in the checkpoint."""
    difference: Difference = field(default_factory=Difference)
    values: tuple[str, ...] = ()
    """A sentence on each hyper-parameter that was another one."""


def inherit(
    config: Config, checkpoint: Path | None, model: nn.Module, groups: Configured | Prebuilt
) -> Inheritance:
    """Settles, before anything is wrapped or bound, whose hyper-parameters this run has.

    Args:
        config: Of this run.
        checkpoint: Which it starts from; None where there is none.
        model: Not yet wrapped.
        groups: As the config has them; with `resume_groups: checkpoint` their plan changes.

    Raises:
        ConfigError: `resume_rename` fits neither checkpoint nor model; `resume_groups: error`, and there are
            differences; `checkpoint`, and these groups cannot have its values.
    """
    if checkpoint is None:
        return Inheritance()
    renaming = _outstanding(config, checkpoint, model)
    saved = read_json(checkpoint / "plan.json")
    now = partial(renamed, renaming=renaming)
    _check_ties(saved, groups.plan, now, checkpoint)
    found = compare(saved, groups.plan, now)
    if config.resume_groups == "error" and (told := [*described(found.changes), *found.lost]):
        raise ConfigError(
            "resume_groups",
            "\n    ".join([f"{checkpoint} was trained with other groups", *told]),
            given="error",
            allowed="config (the values of this config), or checkpoint (those of the checkpoint)",
        )
    if config.resume_groups == "config":
        return Inheritance(renaming, found, tuple(described(found.changes)))
    kept = [change for change in found.changes if change.fqn not in found.stepped_by]
    others = [change for change in found.changes if change.fqn in found.stepped_by]
    if kept:
        before = groups.plan
        groups.keep(kept, found.own)
        _check_split(config, before, groups.plan)
    return Inheritance(renaming, found, (*described(kept, kept=True), *described(others)))


def _outstanding(config: Config, checkpoint: Path, model: nn.Module) -> dict[str, str]:
    """What of `resume_rename` the checkpoint has not seen yet."""
    if not config.resume_rename:
        return {}
    keys = TensorReader(checkpoint).entries()
    saved = [key.removeprefix("model.") for key in keys if key.startswith("model.")]
    try:
        done = document.read(checkpoint / "config.yaml").data.get("resume_rename") or {}
    except ConfigError:  # not a config of ours
        done = {}
    return outstanding(config.resume_rename, saved, model.state_dict().keys(), done)


def _check_ties(saved: Mapping[str, Any], plan: Plan, now: Callable[[str], str], checkpoint: Path) -> None:
    """Raises ConfigError where one parameter would have to take the values of two."""
    owners = {
        now(param["fqn"]): param["fqn"] for group in saved.get("groups", []) for param in group["params"]
    }
    owners |= {now(name): name for name in saved.get("frozen", [])}
    owners |= {now(name): names[0] for names in saved.get("ties", []) for name in names}
    for names in plan.ties:
        were = {owners[name]: name for name in names if name in owners}
        if len(were) > 1:
            both = " and ".join(were.values())
            problem = f"{both} are one parameter now, and were several in {checkpoint}"
            raise ConfigError("model", problem, allowed="a model that ties what was tied")


def _check_split(config: Config, before: Plan, now: Plan) -> None:
    """Raises ConfigError where a group had to be split, and something goes by groups."""
    new = {group.name for group in now.groups} - {group.name for group in before.groups}
    by_groups = [
        f"param_scheduler.{i}.groups" for i, entry in enumerate(config.param_scheduler) if entry.groups
    ]
    by_groups += ["clip_grad.per_group"] * bool(config.clip_grad and config.clip_grad.per_group)
    if new and by_groups:
        raise ConfigError(
            "resume_groups",
            f"to keep the values of the checkpoint, groups would have to be split ({', '.join(sorted(new))}),"
            f" which {by_groups[0]} does not know",
            given="checkpoint",
            allowed="config; or rules that put together what had the same values",
        )
