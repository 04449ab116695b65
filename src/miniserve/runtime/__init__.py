"""The real executor: batches as tensors, paged KV memory, and sampling."""
