"""The small models that the shipped configs train."""

from distopt.models.byte_gpt import ByteGPT
from distopt.models.convnet import ConvNet
from distopt.models.resnet import ResNet50

__all__ = ["ByteGPT", "ConvNet", "ResNet50"]
