import runpy
import sys
import types

from conftest import REPOSITORY


def test_an_existing_shim_is_not_replaced(monkeypatch):
    names = ('torchvision.transforms.functional_tensor', 'distutils')
    shims = {name: types.ModuleType(name) for name in names}  # like other packages' shims, without a __spec__
    for name, shim in shims.items():
        monkeypatch.setitem(sys.modules, name, shim)
    runpy.run_path(str(REPOSITORY / 'facd_basicsr' / 'compat.py'))
    assert all(sys.modules[name] is shim for name, shim in shims.items())
