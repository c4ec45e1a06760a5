"""difflens: dissect, locate and control the social biases of diffusion models."""

__version__ = "0.1.0"
