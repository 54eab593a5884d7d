"""Several ranks: how the model is divided among them."""
