"""What training sees: data sets, prepared cases, augmentation, phantoms, painted bleeds."""
