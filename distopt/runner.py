"""The runner: composes everything, and trains."""

from __future__ import annotations

import json
import logging
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from distopt import comm, parallel, parts
from distopt.checkpoint import directory, resume, state
from distopt.config import Config, batch_layout
from distopt.data import EvalLoader, TrainLoader
from distopt.errors import ConfigError
from distopt.evaluation import evaluate
from distopt.monitor import Throughput, open_console
from distopt.objective import compute_loss
from distopt.optim import build_optimizer, make_plan, try_optimizer
from distopt.recording import Recording
from distopt.schedule import build_schedule
from distopt.seeding import make_deterministic, seed_everything

logger = logging.getLogger(__name__)


class Runner:
    """Trains what a config describes, as one process of the world that torchrun started.

    Args:
        config: From `load_config`.
        model: In place of `config.model`: on the CPU, unwrapped, with the same weights on every rank.
        train_data: In place of `config.data.train`.
        val_data: In place of `config.data.val`.
    """

    def __init__(
        self,
        config: Config,
        *,
        model: nn.Module | None = None,
        train_data: Dataset[Any] | None = None,
        val_data: Dataset[Any] | None = None,
    ) -> None:
        self.config = config
        self.world = comm.World.from_env()
        self.device = self.world.device
        self.console = open_console(self.world.rank)
        self._given = model, train_data, val_data

    def train(self) -> None:
        """Trains to the end of the run, from wherever its directory says that it stands.

        Raises:
            ConfigError: What the user got wrong; nearly all of it before a process group or file exists.
        """
        config = self.config
        self.start = resume.find_start(config.work_dir, config.resume, config.to_dict())
        if self.start.finished:
            self.console.note(f"{config.work_dir}: finished at step {self.start.step}, nothing to do")
            return
        self._prepare()
        with comm.process_group(self.world):
            self._assemble()
            with self._record() as self.recording:
                self._introduce()
                self._loop()

    def _prepare(self) -> None:
        """Model, plan, data: all that needs no other process, so that mistakes are found before one waits."""
        config = self.config
        self.layout = batch_layout(config, self.world.size)
        if config.deterministic:
            make_deterministic()
        seed_everything(config.seed)
        model, train_data, val_data = self._given
        self.model = parts.model(config, model)
        if not self.model.training:  # as `from_pretrained` leaves it; single modules may be frozen in theirs
            self.model.train()
        self.plan = make_plan(self.model, config.optimizer)
        self.train_data = parts.train_dataset(config, train_data)
        self.val_data = parts.val_dataset(config, val_data)
        loading: dict[str, Any] = {
            "rank": self.world.rank,
            "num_workers": config.data.num_workers,
            "device": self.device,
        }
        self.batches = TrainLoader(self.train_data, self.layout, seed=config.seed, **loading)
        if self.val_data is not None:
            self.eval_batches = EvalLoader(self.val_data, self.layout, **loading)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.max_steps = config.max_steps or self.steps_per_epoch * (config.max_epochs or 0)
        if self.start.step > self.max_steps:
            problem = f"{self.start.checkpoint} is further than that already, at step {self.start.step}"
            raise ConfigError("max_steps", problem, given=self.max_steps)
        # A trial of both, without weights or a world: what they refuse is found here.
        trial = try_optimizer(self.plan, config.optimizer)
        build_schedule(trial, config.param_scheduler, self.steps_per_epoch, self.max_steps)

    def _assemble(self) -> None:
        """Wrap, bind, schedule, resume: in this order, since each reads what the one before made."""
        config = self.config
        comm.agree(
            {
                "checkpoint to start from": str(self.start.checkpoint),
                "plan of the optimizer's groups": self.plan.digest,
                "length of the run": str(self.max_steps),
                "number of training samples": str(len(self.train_data)),  # type: ignore[arg-type]
            }
        )
        self.wrapped = parallel.wrap(self.model, config.strategy.type, self.device)
        self.optimizer = build_optimizer(self.wrapped, config.optimizer, self.plan)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.schedule = build_schedule(
            self.optimizer, config.param_scheduler, self.steps_per_epoch, self.max_steps
        )
        seed_everything(config.seed, self.world.rank)
        self.step = 0  # optimizer steps done
        self.lost: list[str] = []  # what the checkpoint could not give
        if self.start.checkpoint is not None:
            self.lost = state.load(
                self.start.checkpoint, self.wrapped, self.optimizer, optimizer_type=self.plan.optimizer
            )
            progress = directory.read_progress(self.start.checkpoint)
            self.batches.load_state_dict({"epoch": progress.epoch, "offset": progress.offset})
            self.step = progress.step

    def _loop(self) -> None:
        config, first = self.config, self.step + 1
        batches = iter(self.batches)
        tokens_per_sample = getattr(self.train_data, "tokens_per_sample", None)
        self.throughput = Throughput(self.step, self.layout.batch_size, tokens_per_sample)
        while self.step < self.max_steps:
            logs = self.step + 1 == first or self._due(config.log.every, self.step + 1)
            loss, grad_norm = self._optimizer_step(next(batches), logs)
            self.step += 1
            if logs:
                self._log(loss, grad_norm)
            if config.eval and self._due(config.eval.every, self.step):
                self._evaluate()
            if self._due(config.checkpoint.every, self.step):
                self._save()

    def _due(self, every: int | None, step: int) -> bool:
        return step == self.max_steps or (every is not None and step % every == 0)

    def _optimizer_step(
        self, micro_batches: list[Any], logs: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns this rank's mean loss over its micro-batches, and the gradient's norm before clipping."""
        self.schedule.apply(self.step)
        losses = []
        for i, batch in enumerate(micro_batches):
            with parallel.gradient_sync(self.wrapped, enabled=i == len(micro_batches) - 1):
                with self._precision():
                    loss = compute_loss(self.wrapped, batch) / len(micro_batches)
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        grad_norm = self._clip(logs)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).sum(), grad_norm

    def _precision(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _clip(self, logs: bool) -> torch.Tensor | None:
        """Without `clip_grad` the norm is computed only for the steps that are logged."""
        if self.config.clip_grad:
            return nn.utils.clip_grad_norm_(self.parameters, self.config.clip_grad.max_norm)
        if logs:
            return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return None

    def _log(self, loss: torch.Tensor, grad_norm: torch.Tensor | None) -> None:
        """Records the step just done, with the values that it used."""
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        [total_loss] = comm.sum_over_ranks([loss], self.device)
        groups = self.optimizer.param_groups
        self.recording.log(
            {
                "step": self.step,
                "epoch": self.batches.epoch,
                "loss": total_loss / self.world.size,
                "lr": {group["name"]: float(group["lr"]) for group in groups},
                "weight_decay": {g["name"]: g["weight_decay"] for g in groups if "weight_decay" in g},
                "grad_norm": None if grad_norm is None else float(grad_norm),
                "perf": self.throughput.measure(self.step),
            }
        )
        if not math.isfinite(total_loss):
            raise FloatingPointError(f"the loss of step {self.step} is {total_loss}")

    def _evaluate(self) -> None:
        with self.throughput.pause():
            parallel.average_buffers(self.model)
            metrics = evaluate(self.wrapped, self.eval_batches, self.device, self._precision())
            self.recording.log({"step": self.step, "epoch": self.batches.epoch, "eval": metrics})

    def _save(self) -> None:
        config = self.config
        path = directory.step_directory(config.work_dir, self.step)
        progress = directory.Progress(step=self.step, **self.batches.state_dict(), world_size=self.world.size)
        documents = {"config.yaml": config.to_yaml(), "plan.json": json.dumps(self.plan.to_dict(), indent=1)}
        with self.throughput.pause():
            parallel.average_buffers(self.model)
            state.save(path, self.wrapped, self.optimizer, progress, documents)
            if self.world.is_main:
                directory.prune(config.work_dir, config.checkpoint.keep_last)
            self.recording.saved(path)

    def _record(self) -> Recording:
        """The run directory, opened for writing."""
        baselines = getattr(self.val_data, "baselines", None) if self.world.is_main else None
        return Recording(
            self.config,
            self.plan,
            self.world,
            self.console,
            step=self.step,
            last_step=self.max_steps,
            baselines=baselines() if baselines else {},
            checkpoint=self.start.checkpoint,
        )

    def _introduce(self) -> None:
        """What will be trained, and how: the header and the table of groups."""
        config, layout = self.config, self.layout
        parameters = {id(p): p for p in self.model.parameters()}.values()
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        launched = "" if self.world.launched else " (started without torchrun)"
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        self.console.header(
            {
                "model": f"{type(self.model).__name__}, {total:,} parameters, {trainable:,} trainable",
                "data": f"{config.data.train.type}, {len(self.train_data):,} samples",  # type: ignore[arg-type]
                "world": f"{self.world.size} × {self.device.type} ({backend}){launched}",
                "strategy": f"{config.strategy.type}, {config.precision}",
                "batch": f"{layout.batch_size} = {layout.world} (ranks) ×"
                f" {layout.micro_batch_size} (per forward) × {layout.accumulation} (accumulated)",
                "steps": f"{self.max_steps:,} ({self.max_steps / self.steps_per_epoch:.3g} epochs)",
                "work_dir": str(config.work_dir),
                "start": f"step {self.step}, from {self.start.checkpoint.name}"
                if self.start.checkpoint
                else "afresh",
            }
        )
        self.console.groups(self.plan.to_dict()["groups"])
        for note in self.plan.notes:
            self.console.note(note)
        for warning in (*self.plan.warnings, *self.start.skipped, *self.lost):
            logger.warning(warning)
        for difference in self.start.differences:
            logger.warning("changed since the last start: %s", difference)
