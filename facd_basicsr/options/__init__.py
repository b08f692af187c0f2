"""Option file -> checked option dict."""

from .parse import PACKAGE_PARENT, load_options, load_yaml, parse_options, parser

__all__ = ['PACKAGE_PARENT', 'load_options', 'load_yaml', 'parse_options', 'parser']
