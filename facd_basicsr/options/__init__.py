"""Option file -> checked option dict."""

from .option_files import load_yaml, read_option_file
from .parse import PACKAGE_PARENT, check_inputs, complete_options, load_options, parse_options, parser

__all__ = [
    'PACKAGE_PARENT',
    'check_inputs',
    'complete_options',
    'load_options',
    'load_yaml',
    'parse_options',
    'parser',
    'read_option_file',
]
