"""Option file -> checked option dict."""

from .inherit import read_option_file
from .parse import PACKAGE_PARENT, complete_options, load_options, parse_options, parser
from .plain_yaml import load_yaml

__all__ = [
    'PACKAGE_PARENT',
    'complete_options',
    'load_options',
    'load_yaml',
    'parse_options',
    'parser',
    'read_option_file',
]
