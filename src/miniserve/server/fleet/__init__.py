"""Several engines behind one API."""
