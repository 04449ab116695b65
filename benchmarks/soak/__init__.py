"""What `serve_soak.py` is made of: clients of every kind, trouble with the machine, and who watches."""
