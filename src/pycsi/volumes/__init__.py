"""What is done to volumes and snapshots, in whatever pool they are."""
