"""Errors a user can cause or cure. The command line shows each as one line and ends with its exit code.

A message names the file or the parameter and says what to do. Parameters stand in backquotes, as `image_size` or
`device='cpu'`; the command line writes them as its flags (`app.flags`).
"""


class Mast3rSfmError(Exception):
    """Base of all expected failures."""

    exit_code = 1


class InputError(Mast3rSfmError):
    """Wrong usage or unusable input (missing path, unreadable image, impossible option)."""

    exit_code = 2


class EmptySceneError(InputError):
    """Nothing is left to show. `suggested_min_conf_thr` would keep something; None if no threshold does."""

    def __init__(self, message: str, suggested_min_conf_thr: float | None) -> None:
        super().__init__(message)
        self.suggested_min_conf_thr = suggested_min_conf_thr


class ModelError(Mast3rSfmError):
    """A model that cannot be found, downloaded, read or matched to its configuration."""

    exit_code = 3


class ReconstructionError(Mast3rSfmError):
    """The images were read, but no reconstruction came out of them."""

    exit_code = 4


class NotFiniteError(ReconstructionError):
    """The network predicted infinities or NaN: wrong weights, or half precision that overflowed."""
