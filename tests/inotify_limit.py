"""A limit of inotify watches of one's own, for tests that run into it."""

# To be put before a command: it gets a user namespace in which only one folder can be watched.
ONE_WATCH = (
    *("unshare", "--user", "--map-root-user", "sh", "-c"),
    'echo 1 > /proc/sys/user/max_inotify_watches && exec "$@"',
    "sh",
)
