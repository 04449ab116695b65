"""The decoder's operators in C++ for a CPU, compiled on the machine they run on; torch where that is not possible.

`ops` has the operators with `reference`'s meaning; `linear` the weights and the products with them; `build` makes the
library.
"""
