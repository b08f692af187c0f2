from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='facd_basicsr',
    version='0.2.0',
    description='FACD knowledge distillation for super-resolution, as a BasicSR extension',
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['facd_basicsr', 'facd_basicsr.*']),
    package_data={
        'facd_basicsr': ['py.typed'],  # type checkers may read its annotations
        'facd_basicsr.report': ['*.html', '*.svg', '*.css', '*.js'],  # the templates of facd report
    },
    py_modules=['facd_cli'],  # the `facd` command; outside the package, whose import takes seconds
    python_requires='>=3.10',
    entry_points={'console_scripts': ['facd = facd_cli:main']},
    install_requires=[
        'basicsr>=1.4.2',
        'click',  # the `facd` command: subcommands, help, completion
        'filelock',  # one download for several processes; torch needs it too
        'jinja2',  # the page of facd report; torch needs it too
        'lmdb',
        'opencv-python',
        'pyyaml',
        'tb-nightly',
        'torch>=2.4',
        'torchvision',
        'matplotlib',  # the curves of facd compare
        'numpy',  # images; basicsr and opencv-python need it too
        'packaging',  # compat.py: LooseVersion's successor, where distutils is gone
        'requests',  # downloads; basicsr needs it too
        'safetensors',  # checkpoints in that format
        'pillow',  # image sizes without decoding, and figures; torchvision needs it too
        'scikit-image',  # the demo's photographs are in its wheel; basicsr needs it too
        'scipy',  # Student's t in facd compare; basicsr needs it too
        'tqdm',  # progress; basicsr needs it too
    ],
    extras_require={
        'spandrel': ['spandrel'],  # teachers and students of other architectures
        'onnx': ['onnx', 'onnxruntime'],  # facd export, and facd upscale with an exported student
        # facd upscale --backend openvino: on Intel's CPUs faster than onnxruntime for some networks. Its telemetry,
        # which reports every import to Google Analytics, is kept from loading.
        'openvino': ['onnx', 'openvino'],
        # LPIPS and DISTS: maintained, both with their authors' weights in the wheel, and one small dependency beside
        # torch. lpips is unmaintained and without DISTS, piq has neither AlexNet nor weights, and pyiqa brings
        # transformers and a second OpenCV.
        'perceptual': ['torchmetrics>=1.8'],
        'dev': [
            'coverage>=7.10',  # make test-all; older versions lack `patch`
            'hypothesis',
            'mypy',  # make lint
            'ncnn',  # runs exported students in tests/deploy/test_other_runtimes.py
            'onnx',
            'onnxruntime',
            'openvino',
            'pnnx',  # makes ncnn's files of ONNX
            'pytest',
            'pytest-xdist',
            'ruff',
            'selenium',  # the page of facd report in a real Chromium
            'spandrel',
            'torchmetrics>=1.8',
            'types-PyYAML',  # for mypy
            'types-requests',
            'types-tqdm',
        ],
    },
)
