"""Read and write images: formats, integrity, whole files, walking folders."""
