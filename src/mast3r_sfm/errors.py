"""Errors a user can cause or cure. Each is shown as one line and ends the process with its exit code."""


class Mast3rSfmError(Exception):
    """Base of all expected failures. The message names the file or option and says what to do."""

    exit_code = 1


class InputError(Mast3rSfmError):
    """Wrong usage or unusable input (missing path, unreadable image, impossible option)."""

    exit_code = 2


class ModelError(Mast3rSfmError):
    """A model that cannot be found, downloaded, read or matched to its configuration."""

    exit_code = 3


class ReconstructionError(Mast3rSfmError):
    """The images were read, but no reconstruction came out of them."""

    exit_code = 4


EXIT_PARTIAL = 5
"""Exit code of a run that wrote all its files but could not register every image."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C."""
