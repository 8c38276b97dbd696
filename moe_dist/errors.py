"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to do.

    The command prints it without a traceback; everything else that escapes is a bug and keeps its traceback.
    """
