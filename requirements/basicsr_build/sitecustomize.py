"""Lets basicsr 1.4.2's setup.py build on Python >= 3.13. Used by the Makefile for that one build only.

Its ``get_version`` runs ``exec(version.py)`` and then reads ``locals()['__version__']``. Since PEP 667
(Python 3.13) ``exec`` in a function writes to a snapshot that the next ``locals()`` does not see, and the
build ends in ``KeyError: '__version__'``. Here a bare ``exec(code)`` writes to the caller's frame again.
"""

import builtins
import sys

_exec = builtins.exec


def _exec_into_caller(source, globals=None, locals=None, /, **kwargs):
    if globals is None and locals is None:
        caller = sys._getframe(1)
        globals, locals = caller.f_globals, caller.f_locals
    return _exec(source, globals, locals, **kwargs)


if sys.version_info >= (3, 13):
    builtins.exec = _exec_into_caller
