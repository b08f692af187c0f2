from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='facd_basicsr',
    version='0.1.0',
    description='FACD knowledge distillation for super-resolution, as a BasicSR extension',
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['facd_basicsr', 'facd_basicsr.*']),
    python_requires='>=3.10',
    install_requires=[
        'basicsr>=1.4.2',
        'lmdb',
        'opencv-python',
        'pyyaml',
        'tb-nightly',
        'torch>=2.4',
        'torchvision',
        'numpy',  # images; basicsr and opencv-python need it too
        'packaging',  # compat.py: LooseVersion's successor, where distutils is gone
        'pillow',  # image sizes without decoding, and the demo's picture; torchvision needs it too
        'scikit-image',  # the demo's photographs are in its wheel; basicsr needs it too
        'tqdm',  # progress; basicsr needs it too
    ],
    extras_require={'dev': ['hypothesis', 'pytest', 'ruff']},
)
