"""What is looked at before a long run: memory, gradients, the machine."""
