"""k-sparse autoencoders of diffusion activations: tokens in, a few active latents out."""
