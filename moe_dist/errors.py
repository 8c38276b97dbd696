"""The exceptions that a command ends with in one sentence."""


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to do.

    The command prints it without a traceback; everything else that escapes is a bug and keeps its traceback.
    """


class DiskError(UserError):
    """A disk is full or out of order. The run itself is not at fault, and goes on once that is mended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asked this process to end (Slurm, Kubernetes, a machine that is taken back). It unwinds as by Ctrl-C."""
