"""Reads checkpoints without running what is in them.

torch reads a checkpoint's `.metadata` by plain pickle, and its entries that are not tensors by
`torch.load(weights_only=False)`: either would run whatever a file from elsewhere says. Here only the few
types that torch writes into `.metadata` are admitted, and only entries that are tensors.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)

from distopt.checkpoint.rename import Renaming, renamed
from distopt.errors import ConfigError

_METADATA = "torch.distributed.checkpoint.metadata"
_ADMITTED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        (_METADATA, name)
        for name in (
            "ChunkStorageMetadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "TensorProperties",
            "_MEM_FORMAT_ENCODING",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
        )
    ),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # as Python 3.13 spells it
}


class TensorReader(FileSystemReader):
    """torch's reader, for checkpoints that nobody vouches for.

    Args:
        checkpoint: Its directory.
        renaming: What stands in it under another name than it is asked for: see `renamed`.
    """

    def __init__(self, checkpoint: Path, renaming: Renaming = MappingProxyType({})) -> None:
        super().__init__(checkpoint)
        self._renaming = renaming

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises ConfigError for whatever is not a checkpoint of tensors."""
        path = self._get_metadata_path(kwargs.get("rank"))
        try:
            with self.fs.create_stream(path, "rb") as file:
                metadata = _Unpickler(file).load()
        except Exception as error:  # a broken pickle may raise anything
            raise _refusal(f"{path} cannot be read: {error}") from error
        if not isinstance(metadata, Metadata):
            raise _refusal(f"{path} is no metadata of a checkpoint")
        for key, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise _refusal(f"{path}: {key} is not a tensor")
        if self._renaming:
            self._rename(metadata)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def entries(self) -> dict[str, TensorStorageMetadata]:
        """The tensors of the checkpoint: dotted key → size, dtype and chunks."""
        return cast("dict[str, TensorStorageMetadata]", self.read_metadata().state_dict_metadata)

    def _rename(self, metadata: Metadata) -> None:
        """Of all that stands under the names of the model's tensors."""

        def now(key: str) -> str:
            part, dot, name = key.partition(".")
            return f"{part}{dot}{renamed(name, self._renaming)}" if part in ("model", "optim", "ema") else key

        entries, chunks = metadata.state_dict_metadata, metadata.storage_data
        metadata.state_dict_metadata = {now(key): entry for key, entry in entries.items()}
        metadata.storage_data = {replace(index, fqn=now(index.fqn)): chunk for index, chunk in chunks.items()}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED or (module == "torch" and _is_dtype(name)):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        raise _stranger(module, name)


def _memory_format(kind: object, name: str) -> _MEM_FORMAT_ENCODING:
    """Stands in for getattr, by which Python 3.11.0 to 3.11.3 (Debian 12's) pickle members of enums."""
    if kind is not _MEM_FORMAT_ENCODING:
        raise _stranger("builtins", "getattr")
    return _MEM_FORMAT_ENCODING[name]


def _stranger(module: str, name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"{module}.{name} has no place in it, and is not run")


def _is_dtype(name: str) -> bool:
    return isinstance(vars(torch).get(name), torch.dtype)


def _refusal(problem: str) -> ConfigError:
    return ConfigError("resume", problem, allowed="a checkpoint that distopt wrote")
