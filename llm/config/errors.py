"""What ends a command, and how: the exit codes that scripts rely on.

0 done · 1 failed · 2 refused (the user can mend it) · 130 and 143 interrupted and saved.
"""


class Refused(Exception):
    """Something the user can mend: one line naming it and the remedy, exit code 2.

    `key` is relative to the node whose constructor raises it (`top_k`); `instantiate` puts the
    node's path before it, so that the line names the key as the user types it (`moe.top_k`).
    """

    def __init__(self, message: str, key: str | None = None):
        super().__init__(message)
        self.message = message
        self.key = key
        self.own = False  # of several processes this one alone met it

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class Failed(Exception):
    """Training cannot go on and nothing typed differently is sure to mend it: exit code 1."""


class Diverged(Failed):
    """The loss is not finite, or leaps again and again: the same job would end the same way."""


class PeerFailed(Exception):
    """Another process of this job failed, and has said why: nothing more is printed here."""

    def __init__(self, rank: int, exit_code: int, reason: str):
        super().__init__(rank, exit_code, reason)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"process {self.args[0]}: {self.args[2]}"


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal after saving. A KeyboardInterrupt, so that it ends a sweep too."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)  # all that is needed to unpickle it in another process
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"interrupted by signal {self.args[0]}"
