"""Fit networks to labels: trainer, classifier, segmenter, learned strip; curves and hardware."""
