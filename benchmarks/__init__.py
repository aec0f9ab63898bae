"""How fast it is: inference, the training data's loader, other runtimes."""
