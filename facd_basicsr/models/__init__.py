"""Models, registered in BasicSR's ``MODEL_REGISTRY`` by being imported."""

from .facd_model import FACDModel

__all__ = ['FACDModel']
