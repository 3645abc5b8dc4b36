"""The JSON Schema of a row of metrics.jsonl.

A key that rows get is a line in `_KEYS`. What is not named there is tolerated in the forms that callbacks may
add: numbers, text, lists of these, and mappings of text to numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number"}
_MAYBE = {"type": ["number", "null"]}
"""A number that need not be finite: null stands for one that is not."""
_NUMBERS = {"type": "object", "additionalProperties": _MAYBE}


def _parts(**known: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of text to numbers, of which some names are known."""
    return {**_NUMBERS, "properties": known}


_KEYS: dict[str, tuple[Mapping[str, Any], str]] = {
    "step": ({"type": "integer", "minimum": 1}, "Optimizer steps done; the row has what this step used."),
    "epoch": (_COUNT, "0-based epoch of the step."),
    "loss": (_MAYBE, "Mean over all ranks and micro-steps of the step."),
    "lr": (_NUMBERS, "Group → learning rate."),
    "weight_decay": (_NUMBERS, "Group → weight decay."),
    "momentum": (_NUMBERS, "Group → momentum, or Adam's first beta."),
    "grad_norms": (_NUMBERS, "Group → norm of its gradient, before clipping."),
    "param_norm": (_NUMBERS, "Group → norm of its parameters, before the step."),
    "update_ratio": (_NUMBERS, "Group → norm of what the step added, over that of the parameters."),
    "grad_norm": (_MAYBE, "Of the whole gradient, before clipping; null where it is not known."),
    "perf": (
        {
            **_parts(step_time=_NUMBER, samples_per_second=_NUMBER, tokens_per_second=_NUMBER),
            "required": ["step_time", "samples_per_second"],
        },
        "Seconds per step, and rates of all ranks together, since the last logged step.",
    ),
    "time": (_NUMBERS, "Part of the step → seconds that it took on rank 0."),
    "ranks": (_NUMBERS, "The slowest and the fastest rank, and their seconds where they wait for no other."),
    "memory": (_NUMBERS, "Kind → GiB of the rank that has most."),
    "train": (_NUMBERS, "Other numbers that the model returned beside its loss."),
    "loss_scale": (_NUMBER, "With precision fp16."),
    "skipped": ({"type": "integer", "minimum": 1}, "Steps of this start left out, once there are any."),
    "eval": (_NUMBERS, "Metric → value over the whole validation data."),
    "checkpoint": (_NUMBERS, "Seconds that the last one took to be written, and held the training up."),
    "best": (_NUMBERS, "Metric → its best value so far, where it is known which is better."),
}
"""Key → its schema and what it is."""
_KINDS = {
    "a training row": ["loss", "grad_norm", "perf", "time", "memory"],
    "an evaluation row": ["eval", "best"],
    "the row of a checkpoint": ["checkpoint"],
}
"""Kind → the keys that such a row has, and no row of another kind."""


def row_schema() -> dict[str, Any]:
    """The schema, in draft 2020-12, of each line of a metrics.jsonl."""
    scalar = {"type": ["number", "string", "boolean", "null"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a row of metrics.jsonl",
        "type": "object",
        "required": ["step", "epoch"],
        "properties": {key: {**schema, "description": text} for key, (schema, text) in _KEYS.items()},
        "additionalProperties": {"anyOf": [scalar, _NUMBERS, {"type": "array", "items": scalar}]},
        "oneOf": [
            {
                "title": kind,
                "required": keys,
                "not": {"anyOf": [{"required": [key]} for key in _of_others(kind)]},
            }
            for kind, keys in _KINDS.items()
        ],
    }


def _of_others(kind: str) -> list[str]:
    return [key for other, keys in _KINDS.items() if other != kind for key in keys]
