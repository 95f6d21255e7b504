"""The one exception that speaks to a person instead of to a programmer."""


class InputError(ValueError):
    """Something the user gave is wrong: data, a parameter, a path.

    The message is one clear sentence that names the place (file, line, column or parameter) and, where it
    helps, what to do next. The command line prints it without a traceback and exits with status 2.
    """
