"""What basicsr 1.4.2 needs to import on current Python and torchvision. Importing this module is enough."""

import importlib.util
import sys
import types


def _provide_functional_tensor() -> None:
    """torchvision 0.17 removed ``functional_tensor``; basicsr/data/degradations.py:8 imports one name from it."""
    name = 'torchvision.transforms.functional_tensor'
    if name not in sys.modules and importlib.util.find_spec(name) is None:  # there: another's shim
        from torchvision.transforms.functional import rgb_to_grayscale

        module = types.ModuleType(name)
        vars(module)['rgb_to_grayscale'] = rgb_to_grayscale
        sys.modules[name] = module


def _provide_distutils_version() -> None:
    """Python 3.12 removed ``distutils``; basicsr/archs/arch_util.py:6 imports ``LooseVersion`` from it."""
    if 'distutils' not in sys.modules and importlib.util.find_spec('distutils') is None:
        from packaging.version import Version

        package, module = types.ModuleType('distutils'), types.ModuleType('distutils.version')
        vars(package)['version'] = module
        vars(module)['LooseVersion'] = Version
        sys.modules['distutils'] = package
        sys.modules['distutils.version'] = module


_provide_functional_tensor()
_provide_distutils_version()
