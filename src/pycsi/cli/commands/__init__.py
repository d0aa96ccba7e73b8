"""The subcommands of `pycsi`: their options and help. What they do is imported when they run."""
