"""Networks, registered in BasicSR's ``ARCH_REGISTRY`` by being imported."""

from .edsr_student_arch import EDSRStudent
from .rcan_student_arch import RCANStudent
from .regressor_arch import DeepRegressor

__all__ = ['DeepRegressor', 'EDSRStudent', 'RCANStudent']
