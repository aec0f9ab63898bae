"""Read DICOM: which series and why, headers, stacks of slices."""
