"""Runs as TensorBoard's HParams page compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from distopt.monitor import Session, flattened
from distopt.monitor.tensorboard import TensorBoard


class Shown(NamedTuple):
    """A line of the page."""

    hparams: dict[str, Any]
    metrics: dict[str, float]
    status: str


def page(logdir: Path) -> dict[str, Shown]:
    """Run → what TensorBoard's own backend says of it."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(logdir))))
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=list(api_pb2.Status.values()), slice_size=100, include_metrics=True
    )
    groups = Handler(RequestContext(), context, "", request).run().session_groups
    return {
        session.name: Shown(
            {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()},
            {metric.name.tag: metric.value for metric in session.metric_values},
            api_pb2.Status.Name(session.status).removeprefix("STATUS_"),
        )
        for group in groups
        for session in group.sessions
    }


def run(
    directory: Path, loss: float, *, first_step: int = 0, succeeds: bool | None = None, **hparams: Any
) -> None:
    """A start that logs one row."""
    session = Session(directory, hparams)
    writer = TensorBoard(directory, first_step)
    writer.log({"step": first_step + 1, "epoch": 0, "loss": loss, "eval": {"loss": loss}})
    writer.close()
    if succeeds is not None:
        session.end(succeeded=succeeds)


def test_runs_can_be_compared_by_all_that_they_say_and_their_last_values(tmp_path: Path) -> None:
    run(tmp_path / "a", 1.0, lr=0.5, strategy="ddp", succeeds=True)
    run(tmp_path / "b", 2.0, lr=0.25, fused=True, succeeds=True)
    losses = [{"loss/train": loss, "eval/loss": loss} for loss in (1.0, 2.0)]
    assert page(tmp_path) == {
        "a": Shown({"lr": 0.5, "strategy": "ddp"}, losses[0], "SUCCESS"),
        "b": Shown({"lr": 0.25, "fused": True}, losses[1], "SUCCESS"),
    }


@pytest.mark.parametrize(
    ("succeeds", "status"), [(True, "SUCCESS"), (False, "FAILURE"), (None, "UNKNOWN")], ids=str
)
def test_how_a_run_ended_is_shown_once_it_has(tmp_path: Path, succeeds: bool | None, status: str) -> None:
    run(tmp_path / "a", 1.0, lr=0.5, succeeds=succeeds)
    assert page(tmp_path)["a"].status == status


@pytest.mark.parametrize("first_step", [0, 1])
def test_a_run_that_is_started_again_is_the_same_session_and_the_last_start_counts(
    tmp_path: Path, first_step: int
) -> None:
    run(tmp_path / "a", 3.0, lr=0.5, succeeds=False)
    run(tmp_path / "a", 2.0, first_step=first_step, lr=0.25, succeeds=True)
    last = {"loss/train": 2.0, "eval/loss": 2.0}
    assert page(tmp_path) == {"a": Shown({"lr": 0.25}, last, "SUCCESS")}


def test_the_curves_are_read_as_without_a_session(tmp_path: Path) -> None:
    """A loader goes from file to file, in the order of their names, and waits in the last."""
    Session(tmp_path, {"lr": 0.5})
    writer = TensorBoard(tmp_path, 0)
    writer.flush()
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    writer.log({"step": 1, "epoch": 0, "loss": 1.0})
    writer.close()
    [point] = multiplexer.Reload().Tensors(".", "loss/train")
    assert point.step == 1


def test_a_config_is_flattened_to_scalars_under_dotted_keys() -> None:
    config = {
        "lr": 1e-3,
        "optimizer": {"betas": [0.9, 0.95], "fused": True, "constructor": None},
        "param_scheduler": [{"type": "LinearLR"}, {"end": 4}],
        "callbacks": [],
    }
    assert dict(flattened(config)) == {
        "lr": 1e-3,
        "optimizer.betas": "[0.9, 0.95]",
        "optimizer.fused": True,
        "param_scheduler.0.type": "LinearLR",
        "param_scheduler.1.end": 4,
    }
