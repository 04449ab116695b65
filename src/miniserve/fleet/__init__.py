"""Several engines that serve one model: what each of them has for requests that move between them."""
