"""Exit codes of the `lorebase` command."""

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_UNAVAILABLE = 5
EXIT_DEADLINE = 6
EXIT_BUSY = 7
EXIT_INTERRUPTED = 130

EXIT_CODES_HELP = (
    "Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 not found, 4 refused (bad input, failed "
    "precondition, conflict), 5 unavailable, 6 deadline exceeded, 7 busy (retry later), "
    "130 interrupted."
)
