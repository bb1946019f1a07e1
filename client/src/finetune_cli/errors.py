"""Errors of the command that a person can act on: printed as they are, without a stack trace."""


class CommandError(Exception):
    """The command cannot do what it was asked to; the message names what to change."""


class ManifestError(CommandError):
    """A manifest cannot be used; every problem is one entry."""

    def __init__(self, path: str, problems: list[str]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{path} has {count}:\n" + "\n".join(f"  - {problem}" for problem in problems))
