"""The JSON Schema of the config file, made from its models and the texts below their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from distopt.config.bases import BASE, DELETE
from distopt.config.schema import Config
from distopt.config.section import texts

_KINDS = {
    "model": "model",
    "loss": "loss",
    "train": "dataset",
    "val": "dataset",
    "collate": "collate",
    "metrics": "metric",
    "callbacks": "callback",
}
"""Key → the kind of component that stands there."""
_VARIABLE = {"type": "string", "pattern": r"\$\{"}
"""In place of a number, say: its value is known when the config is read."""
_IMPORT_PATH = {"type": "string", "pattern": r"[.:]|\$\{"}
_PATH = {"type": "string", "minLength": 1}
_BASES = {
    "anyOf": [_PATH, {"type": "array", "items": _PATH}],
    "description": "Files that this one builds on, relative to it; one path or a list, later over earlier.",
}
_DELETE = {"type": "boolean", "description": "Drop what the bases have here."}


def json_schema(names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The schema, in draft 2020-12, of all files that `load_config` reads.

    Args:
        names: Kind (model, loss, dataset, collate, optimizer, constructor, schedule, metric,
            callback) → the short names
            that a `type` can have. Only a schedule's cannot be an import path as well.
    """
    schema = Config.model_json_schema(schema_generator=_Generator)
    definitions = schema.pop("$defs")
    optimizer = _typed(definitions["OptimizerConfig"], names["optimizer"], _IMPORT_PATH)
    optimizer = _typed(optimizer, names["constructor"], _IMPORT_PATH, key="constructor")
    definitions["OptimizerConfig"] = optimizer | _closed_paramwise(definitions["ParamwiseConfig"])
    definitions["SchedulerConfig"] = _typed(definitions["SchedulerConfig"], names["schedule"], _VARIABLE)
    component = definitions.pop("Component")
    definitions |= {kind: _typed(component, names[kind], _IMPORT_PATH) for kind in _KINDS.values()}
    sections = [schema, *definitions.values()]
    for section in sections:
        for key in _KINDS.keys() & section["properties"]:
            section["properties"][key] = _pointing(section["properties"][key], f"#/$defs/{_KINDS[key]}")

    needs = _needs(schema, definitions)
    needs["required"].remove("work_dir")  # which the file's name can tell
    needs |= _one_of("max_steps", "max_epochs")
    needs["properties"]["clip_grad"] = _one_of("max_norm", "max_value")
    for section in sections:
        section.pop("required", None)
    del schema["properties"][DELETE]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {BASE: _BASES, **schema["properties"]},
        "if": {"required": [BASE]},  # a base may give what is needed
        "else": needs,
        "$defs": definitions,
    }


class _Generator(GenerateJsonSchema):
    """Knows what the loader admits in place of a value, and documents each key."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_variable(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_variable(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_variable(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return _or_variable(super().literal_schema(schema))

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        return {**super().dict_schema(schema), "properties": {DELETE: _DELETE}}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        for key, text in texts(schema["cls"]).items():
            made["properties"][key]["description"] = text
        made["properties"][DELETE] = _DELETE
        del made["title"]
        return made

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value


def _or_variable(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {"anyOf": [schema, _VARIABLE]}


def _typed(
    section: dict[str, Any], names: Sequence[str], otherwise: dict[str, Any], key: str = "type"
) -> dict[str, Any]:
    """A section whose `type` is one of `names`, or something else; without names, any text."""
    given = section["properties"][key]
    if names:
        given = {**given, "anyOf": [{"enum": list(names)}, otherwise]}
        del given["type"], given["minLength"]
    return {**section, "properties": {**section["properties"], key: given}}


def _closed_paramwise(section: dict[str, Any]) -> dict[str, Any]:
    """Only a constructor of the user's has keys that are not in the section."""
    own = {"required": ["constructor"], "properties": {"constructor": _IMPORT_PATH}}
    closed = {"propertyNames": {"enum": list(section["properties"])}}
    return {"if": own, "else": {"properties": {"paramwise_cfg": closed}}}


def _pointing(schema: Any, target: str) -> Any:
    """The same schema, with all its references to `target`."""
    if isinstance(schema, list):
        return [_pointing(item, target) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: target if key == "$ref" else _pointing(value, target) for key, value in schema.items()}


def _one_of(*keys: str) -> dict[str, Any]:
    """One of the keys, and no other, has a value wherever the section is given."""
    given = [{"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in keys]
    return {"if": {"type": "object"}, "then": {"oneOf": given}}


def _needs(schema: Any, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """All that a schema says about what has to be given, at any depth, and nothing else."""
    if not isinstance(schema, dict):
        return {}
    if "$ref" in schema:
        return _needs(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    needs: dict[str, Any] = {"required": [*schema["required"]]} if "required" in schema else {}
    for alternative in schema.get("anyOf", []):
        needs |= _needs(alternative, definitions)
    inner = {key: _needs(value, definitions) for key, value in schema.get("properties", {}).items()}
    if inner := {key: value for key, value in inner.items() if value}:
        needs["properties"] = inner
    for of_all in ("items", "additionalProperties"):
        if value := _needs(schema.get(of_all), definitions):
            needs[of_all] = value
    return needs
