"""FACD for BasicSR. Importing this package registers its networks, loss and model with BasicSR."""

from .environment import choose_thread_waiting

choose_thread_waiting()  # must run before anything imports torch

from . import compat  # noqa: F401  must run before anything imports basicsr

# isort: split
from . import archs, losses, models  # noqa: F401  registration

__version__ = '0.2.0'
