"""Attention and feed-forward parts in processes of their own (AFD): one engine, whose steps are on both sides in turns.

Attention's ranks have the KV cache, attention, routers and both ends of the model, each the heads of its own; the other
ranks have the feed-forward parts: slices of dense ones, experts whole. A step's tokens are split into batches that take
turns: while one is on the other side, another is here (MegaScale-Infer, arXiv 2504.02263, section 4.1).

    runner ── attention (rank 0) ──┬── exchange ⇄ feed_forward ──┬── member (every other rank)
              attention (others) ──┘                             │
              ranks starts all of them, and tells them each step ┘
"""
