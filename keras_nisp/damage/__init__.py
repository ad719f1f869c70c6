"""What the outputs of a model lose where channels are removed and others stand in for them."""
