"""What is written beside a mask: findings, the viewer, probabilities."""
