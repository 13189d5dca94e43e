"""What can go wrong in words a user can act on. The command line prints these as one line and exits with 2."""


class ConsiliumError(Exception):
    """Base of all errors that a person can mend; the message says what, where, and what to do."""


class ConfigError(ConsiliumError):
    """A federation file or a --set that cannot be true."""


class DataError(ConsiliumError):
    """A hospital folder or its images."""


class SpaceError(DataError):
    """A disk without enough room."""


class ImageError(DataError):
    """One image that cannot be read."""


class UpdateError(ConsiliumError):
    """A hospital's update that must not be averaged; names hospital and tensor."""


class RunError(ConsiliumError):
    """A run folder that is missing, damaged or unfinished."""


class ModelError(ConsiliumError):
    """A published model that is missing, damaged or of an unknown schema."""
