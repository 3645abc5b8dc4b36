"""Small models and datasets that tests name in configs, by `tests.components:Name`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, IterableDataset

from distopt.callbacks import Callback, Run


class Windows(Dataset):
    """Random but learnable bytes: each is the one before plus 1 or 2. Item: (context + 1,) of int64."""

    def __init__(self, length: int = 64, context: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randint(1, 3, (length, context + 1), generator=generator)
        self.windows = steps.cumsum(1) % 32
        self.tokens_per_sample = context

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.windows[index]


class Normed(nn.Module):
    """Has running statistics; its second norm is frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(9)
        self.frozen = nn.BatchNorm1d(9).eval()
        self.head = nn.Linear(9, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.norm(windows.float()))).square().mean()


class Diverging(nn.Module):
    """Its loss is no number from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return self.weight.sum() * (float("nan") if self.calls > 3 else 1.0)  # the first is the rehearsal


class Untying(nn.Module):
    """Its two layers are one, until it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 9, bias=False), nn.Linear(9, 9, bias=False)
        self.second.weight = self.first.weight
        self.register_load_state_dict_post_hook(self._untie)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(windows.float())).square().mean()

    @staticmethod
    def _untie(self, incompatible_keys: object) -> None:
        self.second.weight = nn.Parameter(self.first.weight.detach().clone())


class NoLoss(nn.Module):
    """Forgets to return a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.weight


class Failing(nn.Module):
    """Raises at one of its forwards in training mode, as a user's bug would; the first is the rehearsal."""

    def __init__(self, at: int = 3) -> None:
        super().__init__()
        self.at = at
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.calls == self.at:
            raise ZeroDivisionError("a bug in the user's model")
        return self.weight.sum()


class Recorder(Callback):
    """Notes each hook with the step it was called at; counts steps in its state, as a number and a tensor."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.count = 0
        self.weights = {"seen": torch.zeros(2)}

    def on_start(self, run: Run) -> None:
        self.calls.append(("start", run.step))

    def on_step(self, run: Run) -> None:
        self.count += 1
        self.weights["seen"] += 1
        self.calls.append(("step", run.step))

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        row["recorder"] = {"count": self.count}
        self.calls.append(("log", run.step))

    def on_eval(self, run: Run, row: dict[str, Any]) -> None:
        self.calls.append(("eval", run.step))

    def on_save(self, run: Run, checkpoint: Path) -> None:
        assert checkpoint.is_dir()
        self.calls.append(("save", run.step))

    def on_end(self, run: Run) -> None:
        self.calls.append(("end", run.step))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls.append(("load", state["count"]))
        self.count, self.weights = state["count"], state["weights"]


class StopOnOneRank(Callback):
    """Asks for the end at one step, on one rank only."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step(self, run: Run) -> None:
        if (run.world.rank, run.step) == (self.rank, self.step):
            run.stop("enough")


class SignalWhileSaving(Callback):
    """Sends its own process a signal from inside the writing of the first checkpoint."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.has_stepped = False

    def on_step(self, run: Run) -> None:
        self.has_stepped = True

    def state_dict(self) -> dict[str, Any]:
        if self.has_stepped:  # it is asked for before the first step, too
            signal.raise_signal(self.number)
        return {}


class Points(Dataset):
    """Points of the plane and which of three sectors they are in; `form` is a tuple or a mapping."""

    def __init__(self, length: int = 64, seed: int = 0, form: str = "tuple") -> None:
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(length, 2, generator=generator)
        self.labels = ((torch.atan2(*self.points.T) + torch.pi) * 3 / (2 * torch.pi)).long().clamp(max=2)
        self.form = form

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Any:
        if self.form == "tuple":
            return self.points[index], self.labels[index]
        return {"points": self.points[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """Returns logits: of points, as a tensor, or in a mapping where `named`."""

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        self.named = named

    def forward(self, points: torch.Tensor) -> Any:
        logits = self.layers(points)
        return {"logits": logits} if self.named else logits


class NormedClassifier(Classifier):
    """With BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.insert(1, nn.BatchNorm1d(16))


class OwnLoss(Classifier):
    """Computes its loss itself; returns logits and a number beside it."""

    def forward(self, points: torch.Tensor, labels: torch.Tensor) -> Any:
        logits = self.layers(points)
        hits = (logits.argmax(1) == labels).float().mean()
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits, "hits": hits}


def masked_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore: int = 0) -> dict[str, Any]:
    """The mean over the points of all classes but one."""
    kept = labels != ignore
    loss = nn.functional.cross_entropy(logits[kept], labels[kept])
    return {"loss": loss, "num_items": kept.sum()}


class PointStream(IterableDataset):
    """`Points` in an order of each pass's own, which remembers its place."""

    def __init__(self, length: int = 70) -> None:
        self.points = Points(length)
        self.epoch, self.place = 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.points), generator=torch.Generator().manual_seed(self.epoch))
        for i in order[self.place :].tolist():
            self.place += 1
            yield self.points[i]
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Curious(nn.Module):
    """Takes points to logits, and looks at a value on the way, which torch.compile cannot follow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(x)
        if hidden.sum() > 0:
            hidden = hidden + 1
        return self.out(hidden)


class InTheWay(Callback):
    """Puts a file where the checkpoint of a step is going to be written, which then cannot be."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run) -> None:
        if run.step == self.step and torch.distributed.get_rank() == 0:
            path = run.config.work_dir / "checkpoints" / f"step_{self.step:08d}.partial"
            path.parent.mkdir(exist_ok=True)
            path.write_text("")


class SignalAt(Callback):
    """Sends one rank's process a signal, after a step or from inside of an evaluation."""

    def __init__(
        self, step: int, rank: int = 1, number: int = signal.SIGTERM, evaluating: bool = False
    ) -> None:
        self.step, self.rank, self.number, self.evaluating = step, rank, number, evaluating

    def on_start(self, run: Run) -> None:
        def send(model: nn.Module, _: object) -> None:
            if not model.training:
                self._send(run)

        if self.evaluating:
            run.model.register_forward_pre_hook(send)

    def on_step(self, run: Run) -> None:
        if not self.evaluating:
            self._send(run)

    def _send(self, run: Run) -> None:
        if (run.step, torch.distributed.get_rank()) == (self.step, self.rank):
            signal.raise_signal(self.number)


class Poison(Callback):
    """Makes the last value of a parameter no number, after a step."""

    def __init__(self, step: int, parameter: str) -> None:
        self.step, self.parameter = step, parameter

    def on_step(self, run: Run) -> None:
        if run.step == self.step:
            parameter = run.model.get_parameter(self.parameter)
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            with torch.no_grad():
                local[-1:] = float("nan")
