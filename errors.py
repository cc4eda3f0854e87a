"""The errors that sam2vit explains to its user; anything else is a bug and shows its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: one line with the value, the problem and the remedy (exit code 2)."""


class ConfigError(UserError):
    """A flag or config.json holds something that can't be used."""


class PromptError(ConfigError):
    """The parts of config.json make a prompt that CLIP can't read."""


class DeviceError(UserError):
    """A device or precision that this machine doesn't have."""


class CheckpointError(UserError):
    """Weights that are missing, damaged, or made for another architecture."""


class DatasetError(UserError):
    """The folder of photos can't be read."""


class OutputError(UserError):
    """The output folder can't be written, or belongs to another run."""


class PhotoError(Exception):
    """One photo that can't be done; it is recorded with its reason and the run goes on.

    Args:
        reason: What is wrong, in a few words.
        stage: Where it was noticed: `decode`, `focus`, `segment`, `model` or `write`.
    """

    def __init__(self, reason: str, *, stage: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stage = stage

    @classmethod
    def of(cls, error: Exception, *, stage: str) -> PhotoError:
        """Returns what nobody foresaw as the reason of the photo that raised it: its kind and first line."""
        first_line = str(error).strip().partition("\n")[0]
        return cls(f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__, stage=stage)


class NoSubjectError(PhotoError):
    """A photo that is set aside as the user asked: it shows no subject, or its mask is none to trust."""


class NotAPhotoError(Exception):
    """A file that holds no image and does not claim to (a text file beside the photos)."""
