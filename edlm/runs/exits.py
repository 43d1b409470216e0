"""The end of a command: its exit status, and the line that says why. Nothing here loads torch."""

USAGE_ERROR = 2
FAULT = 70  # ours, not the user's: sysexits.h calls it EX_SOFTWARE
INTERRUPTED = 130  # the shell's status of Ctrl-C
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # as torch says it
_SHOWN = 300  # characters of an error that nobody has foreseen
_LONGEST = 1000  # characters of a message, as the terminal shows them


def explained(error: Exception) -> tuple[str, int]:
    """Say in words what a command tells of an error, and give its exit status.

    2 for a mistake of the user's, a file system that refuses, and too little memory; 70 for what is a fault of ours.
    """
    if isinstance(error, ValueError | OSError):
        return _cut(str(error)), USAGE_ERROR
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN]}"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return f"not enough memory for what was asked; smaller sizes or batches need less ({what})", USAGE_ERROR
    return f"this is a fault of edlm, or of a part of your own ({what}); EDLM_DEBUG=1 shows where", FAULT


def _cut(message: str) -> str:
    """Keep the beginning, which names the key or the file, and the end, which says what would be right."""
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
