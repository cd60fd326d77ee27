"""The one exception whose text is meant for an operator's eyes, and how others are put there."""


class UserError(ValueError):
    """Bad input from outside: a file, a message, a parameter, an argument.

    The text is one sentence that names the field, the value seen and the mend. Command lines print
    it without a traceback and exit with status 2; services answer it with ``success=False``.
    Mistakes of the programmer are ``assert`` statements and never this class.
    """


def root_cause(error: BaseException) -> str:
    """Kind and text of the error that came first, in one line.

    What cleans up after a failure (ending a broken CUDA capture, say) raises another error over it,
    and that one explains nothing.
    """
    seen = {id(error)}
    while (before := error.__cause__ or error.__context__) is not None and id(before) not in seen:
        error = before
        seen.add(id(error))
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
