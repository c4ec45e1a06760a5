"""Which latents drive an attribute: scores per class, step and latent, and the selection made from them."""
