"""What the paper does not have, made of the same parts."""
