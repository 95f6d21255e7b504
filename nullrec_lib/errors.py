"""The one exception that speaks to a person instead of to a programmer."""


class InputError(ValueError):
    """Something the user gave is wrong: data, a parameter, a path.

    The message is one clear sentence that names the place (file, line, column or parameter) and, where it
    helps, what to do next. The command line prints it without a traceback and exits with status 2.
    """


def shown(value: object, longest: int = 80) -> str:
    """A value as a sentence can hold it: like `repr`, but short, and of any whole number and any text."""
    try:
        text = repr(value).encode("utf-8", "backslashreplace").decode()
    except (ValueError, RecursionError):  # thousands of digits; nested without end
        return f"a {type(value).__name__} of such a size"
    return text if len(text) <= longest else f"{text[:longest - 1]}…"
