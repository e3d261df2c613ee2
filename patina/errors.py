"""The one exception that reaches a user, and how a command ends with it: one sentence and an exit code."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

STORAGE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT),  # a disk elsewhere that is gone
)
"""What a disk or its rights may say no with: the user's to mend, so a sentence and not a stack trace."""


class PatinaError(ValueError):
    """A mistake in what we were given. The message is for its author: where, what is wrong, what to do."""


def printable(text: str) -> str:
    """Escape what steers a terminal (colours, cursor, titles): texts from files are shown and never obeyed."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def speaks() -> bool:
    """Whether this process tells what goes on: of those that a launcher of torch's started, the first."""
    return os.environ.get("RANK", "0") == "0"


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and leave with its exit code; 2 for a PatinaError, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except PatinaError as error:
        sys.stderr.write(f"{printable(str(error))}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped by Ctrl-C\n")
        sys.exit(130)
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        sys.stderr.write(f"{error.filename or 'output'}: {error.strerror}; free space or choose another folder\n")
        sys.exit(2)
