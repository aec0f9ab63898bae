"""Write DICOM: segmentation objects."""
