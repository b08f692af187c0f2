"""What basicsr 1.4.2 needs on current Python and torchvision. Importing this module is enough."""

import importlib.util
import sys
import types
from typing import Any


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


def full_name(registry: Any, name: str, suffix: str = 'basicsr') -> str | None:
    """The name under which a registry of BasicSR has what ``name`` means, or None: itself, BasicSR's, spandrel's."""
    return next((full for full in (name, f'{name}_{suffix}', f'{name}_spandrel') if full in registry), None)


def _find_suffixed_names_silently() -> None:
    """BasicSR registers some of its own, ``SRVGGNetCompact_basicsr`` for one, with a suffix. ``Registry.get`` prints a
    line that reads like an error each time it finds one by its name without it (basicsr/utils/registry.py:66). This one
    finds spandrel's too (archs/spandrel_arch.py)."""
    from basicsr.utils.registry import Registry

    own_get = Registry.get

    def get(self: Registry, name: str, suffix: str = 'basicsr') -> Any:
        registered = full_name(self, name, suffix)
        if registered is None:
            raise KeyError(f"No object named '{name}' found in '{self._name}' registry!")
        return own_get(self, registered, suffix)

    Registry.get = get


_provide_functional_tensor()
_provide_distutils_version()
_find_suffixed_names_silently()
