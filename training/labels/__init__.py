"""From slice labels to labels of voxels: activation maps, clusters, components, outlines, self-training."""
