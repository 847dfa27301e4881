"""The one error that users see: a paragraph that says what is wrong, where, and what to do next."""


class UserError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits with status
    2."""

    def __init__(self, what: str, *, where: str | None = None, do: str | None = None):
        self.what, self.where, self.do = what, where, do
        super().__init__(" ".join(part for part in (f"{where}:" if where else "", what, do or "") if part))


class StorageError(UserError):
    """A storage that is full, read-only or forbidden: nothing else that is to be written there would succeed
    either."""
