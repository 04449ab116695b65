"""Several versions of one model behind one name: who gets which, and how one takes the place of another."""
