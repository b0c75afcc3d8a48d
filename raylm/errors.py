"""The errors that a person sees."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one clear line that names the thing, the place and the next step. Commands print it
    without a traceback and end with exit code 2.
    """
