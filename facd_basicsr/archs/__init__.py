"""Networks, registered in BasicSR's ``ARCH_REGISTRY`` by being imported."""

import importlib
from pathlib import Path

from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN

from .regressor_arch import DeepRegressor
from .student_arch import EDSRStudent, RCANStudent

CONVOLUTIONAL = (EDSR, EDSRStudent, RCAN, RCANStudent)  # these very classes: a class derived from one may add anything

for _file in sorted(Path(__file__).parent.glob('*_arch.py')):
    importlib.import_module(f'{__name__}.{_file.stem}')

__all__ = ['CONVOLUTIONAL', 'DeepRegressor', 'EDSRStudent', 'RCANStudent']
