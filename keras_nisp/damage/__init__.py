"""What the outputs of a model lose where channels are removed and the others make up for them."""
