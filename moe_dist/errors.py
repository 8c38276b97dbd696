"""The exceptions that a command ends with in one sentence."""


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to do.

    The command prints it without a traceback; everything else that escapes is a bug and keeps its traceback.
    """


class DiskError(UserError):
    """A disk took no more, or is out of order: no fault of what was being run, which goes on when that is mended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asked this process to end (Slurm, Kubernetes, a machine that is taken back): it unwinds as by Ctrl-C."""
