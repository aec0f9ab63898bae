"""Growth between two scans of one patient: alignment, volumes in the same orientation, change with its uncertainty."""
