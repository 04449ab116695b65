"""The decoder's operators in Triton, for NVIDIA GPUs of compute capability 8.0 and up.

`ops` has the operators with `reference`'s meaning. Each other module has one family of kernels and their launches;
`configs` says in what tiles they compute on which generation of GPU. No operator waits for the device, and none depends
on a value that only the device knows: a decode step can be captured in a CUDA graph and replayed with other lengths.
"""
