"""Option file -> checked option dict."""

from .option_files import load_yaml, read_option_file
from .parse import (
    OPTIONS_FILE,
    PACKAGE_PARENT,
    check_inputs,
    complete_options,
    load_options,
    options_of,
    parse_options,
    parser,
)

__all__ = [
    'OPTIONS_FILE',
    'PACKAGE_PARENT',
    'check_inputs',
    'complete_options',
    'load_options',
    'load_yaml',
    'options_of',
    'parse_options',
    'parser',
    'read_option_file',
]
