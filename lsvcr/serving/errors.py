"""What can be wrong with a bundle or a request, each told in a sentence."""

from lsvcr.utils.errors import UserError


class BundleError(UserError):
    """A bundle that cannot be served: the message names the file and what to do."""


class BadRequest(ValueError):
    """A request that has no answer: the message says what is wrong with it and what would be right."""


class UnknownId(LookupError):
    """The video or user that a request is about is not in the bundle."""
