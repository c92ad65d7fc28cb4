"""The small zoo, and networks by name."""

from bnprune.models.zoo import ZOO, ModelSpec, build, set_gamma

__all__ = ["ZOO", "ModelSpec", "build", "set_gamma"]
