"""Texts with a label each, from a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from distopt.errors import ConfigError

COLUMNS = ("text", "label")
ENDINGS = (".csv", ".tsv", ".jsonl")


class LabelledText(Dataset[dict[str, Any]]):
    """The rows of a file with a `text` and a `label`, which is a class's number, from 0.

    Item i is what the tokenizer makes of the text (`input_ids`, `attention_mask`, …: lists, not padded) and
    the label as `labels`.

    Args:
        path: A .csv file (commas, quotes) or a .tsv file (tabs, no quotes), the first line of which names the
            columns, or a .jsonl file with one object a line.
        tokenizer: One of transformers, or what is called as they are.
        max_length: Longer texts are cut to this many tokens.

    Raises:
        ConfigError: The file cannot be read, or a row has no text or no label.
    """

    def __init__(self, path: str, tokenizer: Callable[..., Mapping[str, Any]], max_length: int = 128) -> None:
        file = Path(path)
        if file.suffix not in ENDINGS:
            raise ConfigError("path", "unknown kind of file", given=path, allowed=ENDINGS)
        if not file.is_file():
            raise ConfigError("path", "there is no such file", given=path)
        self.rows = [_parse(row, place) for place, row in _read(file)]
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text, label = self.rows[index]
        return {**self.tokenizer(text, truncation=True, max_length=self.max_length), "labels": label}


def _read(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row, with its `file:line`."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if file.suffix == ".jsonl":
            for number, line in enumerate(lines, start=1):
                try:
                    yield f"{file}:{number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise ConfigError("path", f"{file}:{number} is no JSON", given=line.strip()) from error
        else:
            tabs = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            table = tabs if file.suffix == ".tsv" else csv.DictReader(lines)
            for row in table:
                yield f"{file}:{table.line_num}", row


def _parse(row: Mapping[str, Any], place: str) -> tuple[str, int]:
    for column in COLUMNS:
        if row.get(column) is None:
            raise ConfigError("path", f"{place} has no {column}", given=list(row), allowed=COLUMNS)
    try:
        return row["text"], int(str(row["label"]))  # of the text: a number such as 0.7 is no class either
    except ValueError:
        problem, allowed = f"the label in {place} is no class", "whole numbers from 0"
        raise ConfigError("path", problem, given=row["label"], allowed=allowed) from None
