"""Option file -> checked option dict."""

from .parse import PACKAGE_PARENT, complete_options, load_options, load_yaml, parse_options, parser

__all__ = ['PACKAGE_PARENT', 'complete_options', 'load_options', 'load_yaml', 'parse_options', 'parser']
