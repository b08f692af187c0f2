import runpy
import sys
import types

from conftest import REPOSITORY


def test_a_shim_that_is_there_already_is_left_alone(monkeypatch):
    names = ('torchvision.transforms.functional_tensor', 'distutils')
    shims = {name: types.ModuleType(name) for name in names}  # without a __spec__, as such shims are
    for name, shim in shims.items():
        monkeypatch.setitem(sys.modules, name, shim)
    runpy.run_path(str(REPOSITORY / 'facd_basicsr' / 'compat.py'))
    assert all(sys.modules[name] is shim for name, shim in shims.items())
