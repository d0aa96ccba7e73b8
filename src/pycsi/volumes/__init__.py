"""The operations on volumes and snapshots, in whichever pool they are."""
