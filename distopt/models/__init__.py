"""The small models that the shipped configs train."""

from distopt.models.byte_gpt import ByteGPT

__all__ = ["ByteGPT"]
