"""Write DICOM: segmentations (SEG), structured reports (SR), parametric maps (PM)."""
