"""The one exception whose text is meant for an operator's eyes."""


class UserError(ValueError):
    """Bad input from outside: a file, a message, a parameter, an argument.

    The text is one sentence that names the field, the value seen and the mend. Command lines print
    it without a traceback and exit with status 2; services answer it with ``success=False``.
    Mistakes of the programmer are ``assert`` statements and never this class.
    """
