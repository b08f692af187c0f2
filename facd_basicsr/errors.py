"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """An option file, path, checkpoint or image is not what it should be.

    Its message is one line: the option key or file, the value found, what is accepted, and where that helps the
    command or page that provides it. Entry points print it without a traceback and exit with code 2.
    """
