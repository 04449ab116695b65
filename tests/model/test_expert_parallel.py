"""Tokens to their experts and back: bit for bit what a plain loop gives, however experts and tokens are spread."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniserve.model.cache import NoCache
from miniserve.model.checkpoint_hf import SafetensorsCheckpoint
from miniserve.model.choices import choose
from miniserve.model.expert_parallel import ExpertExchange
from miniserve.model.expert_plan import ExpertOptions, ExpertPlan
from miniserve.model.load import load_decoder
from miniserve.model.sharding import ShardedCheckpoint
from miniserve.model.sources.resolve import resolve
from miniserve.model.weight_plan import weight_plan
from support.thread_ranks import ThreadRanks

HIDDEN = 4
CPU = torch.device("cpu")


def expert(rows, which):
    """What expert `which` makes of rows: each row alone, so that a batch leaves no trace."""
    return (rows.float() * (1 + which) + torch.sin(rows.float() + which)).to(rows.dtype)


class Case:
    """A step: ranks with their experts, tokens with their choices.

    Attributes:
        held: the experts of each rank.
        x, weights, ids, padding: of the T tokens; the first column of x says which token it is.
    """

    def __init__(self, held, num_experts, choices, is_padding, dtype=torch.float32):
        tokens, generator = len(choices), torch.Generator().manual_seed(1)
        self.held, self.num_experts = held, num_experts
        self.x = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
        self.x[:, 0] = torch.arange(tokens)
        self.ids = torch.tensor(choices, dtype=torch.int64).view(tokens, -1)
        self.weights = torch.rand(self.ids.shape, generator=generator)
        self.padding = torch.tensor(is_padding, dtype=torch.bool)[:, None]
        self.answered = []

    def route(self, x, padding):
        tokens = x[:, 0].long()
        assert torch.equal(padding, self.padding[tokens])
        return self.weights[tokens], self.ids[tokens].masked_fill(padding, -1)

    def run(self):
        """Of each rank, what comes of it; and the ranks, which have seen what was sent."""
        ranks = ThreadRanks(len(self.held))

        def compute(communicator):
            exchange = ExpertExchange(self.held, self.num_experts, communicator, CPU)

            def answer(rows, numbers):
                which = torch.tensor(exchange.held)[numbers]
                self.answered += zip(rows[:, 0].long().tolist(), which.tolist(), strict=True)
                return expert(rows, which[:, None])

            return exchange(self.x, self.padding, self.route, answer)

        return ranks.run(compute), ranks

    def expected(self):
        """One token after the other, one choice after the other, in float32."""
        out = torch.zeros_like(self.x)
        for token in range(len(self.x)):
            total = torch.zeros(HIDDEN)
            for choice, which in enumerate(self.ids[token].tolist()):
                if not self.padding[token]:
                    total += expert(self.x[token], which).float() * self.weights[token, choice]
            out[token] = total.to(self.x.dtype)
        return out


@st.composite
def cases(draw):
    num_experts, size = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    holders = [draw(st.sets(st.integers(0, size - 1), min_size=1)) for _ in range(num_experts)]
    held = [[each for each in range(num_experts) if rank in holders[each]] for rank in range(size)]
    per_token, tokens = draw(st.integers(1, min(3, num_experts))), draw(st.integers(1, 9))
    choices = [draw(st.permutations(range(num_experts)))[:per_token] for _ in range(tokens)]
    padding = draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    return Case(held, num_experts, choices, padding, draw(st.sampled_from([torch.float32, torch.bfloat16])))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_every_rank_gets_bit_for_bit_what_a_plain_loop_gives(case):
    found, _ = case.run()
    for out in found:
        assert torch.equal(out, case.expected())


@settings(max_examples=50, deadline=None)
@given(cases())
def test_each_choice_is_answered_once_and_a_row_travels_once_to_a_rank(case):
    _, ranks = case.run()
    real = [token for token in range(len(case.x)) if not case.padding[token]]
    chosen = [(token, which) for token in real for which in case.ids[token].tolist()]
    assert sorted(case.answered) == sorted(chosen)
    share = -(-len(case.x) // ranks.size)
    for source, sent in enumerate(ranks.rows):
        mine = {token for token in real if token // share == source}
        row_bytes = HIDDEN * case.x.element_size()
        for counts, rows, _ in sent:
            travelled = rows[:, -row_bytes:].contiguous().view(case.x.dtype)[:, 0].tolist()
            assert len(set(travelled)) == len(travelled) == counts[0, 0]
            assert mine.issuperset(travelled)
            assert rows.shape[1] == row_bytes + 4 * case.ids.shape[1]


def test_copies_take_turns_and_the_tokens_own_rank_comes_first():
    held = [[0], [0, 1], [2], [2]]  # expert 0 on ranks 0 and 1, expert 2 on ranks 2 and 3
    found = {}

    def ask(communicator):
        exchange = ExpertExchange(held, 3, communicator, CPU)
        found[communicator.rank] = exchange.ranks_asked(torch.tensor([[0, 2], [0, 1], [-1, -1], [2, 0]])).tolist()

    ThreadRanks(4).run(ask)
    assert found[0] == [[0, 2], [0, 1], [-1, -1], [3, 0]]
    assert found[2] == [[0, 2], [1, 1], [-1, -1], [2, 1]]


@pytest.mark.parametrize(("tokens", "size"), [(1, 4), (2, 4), (5, 4), (3, 2)])
def test_fewer_tokens_than_ranks_and_ranks_that_nobody_asks(tokens, size):
    case = Case([[0], [1], [2], [3]][:size], size, [[0]] * tokens, [False] * tokens)
    found, ranks = case.run()
    assert all(torch.equal(out, case.expected()) for out in found)
    assert all(len(sent[-1][1]) == 0 for sent in ranks.rows)


TOKENS = torch.randint(3, 128, (21,), generator=torch.Generator().manual_seed(1))


def logits_of(checkpoint, size, experts, dtype="float32"):
    """Of every rank, [size, T, V], the last tokens' positions being padding's."""
    choices = choose("cpu", dtype=dtype, backend="torch")
    positions = torch.arange(len(TOKENS))

    @torch.inference_mode()
    def compute(communicator):
        decoder = load_decoder(checkpoint, choices, communicator, experts)
        return decoder.logits(decoder(TOKENS, positions, NoCache(decoder.config)))

    return torch.stack(ThreadRanks(size).run(compute))


@pytest.mark.parametrize(
    ("family", "size", "redundant"),
    [("qwen3_moe", 2, 0), ("qwen3_moe", 2, 2), ("qwen3_moe", 4, 0), ("qwen3_moe", 4, 4), ("qwen3_moe-mixed", 2, 2),
     ("mixtral", 2, 0), ("olmoe", 2, 4)],
)  # fmt: skip
def test_logits_equal_transformers(family, size, redundant, tiny_directory):
    directory, reference = tiny_directory(family)
    with torch.inference_mode():
        expected = reference(TOKENS[None]).logits[0]
    found = logits_of(SafetensorsCheckpoint(directory), size, ExpertOptions(redundant))
    assert (found - expected).abs().max() < 1e-4
    assert all(torch.equal(found[0], each) for each in found[1:]), "ranks that differ would choose different experts"


def test_bfloat16_is_as_near_as_without_ranks(tiny_directory):
    directory, reference = tiny_directory("qwen3_moe")
    checkpoint = SafetensorsCheckpoint(directory)
    with torch.inference_mode():
        expected = reference(TOKENS[None]).logits[0]
    alone = (logits_of(checkpoint, 1, None, "bfloat16")[0] - expected).abs().mean()
    apart = (logits_of(checkpoint, 4, ExpertOptions(4), "bfloat16")[0] - expected).abs().mean()
    assert apart < 1.5 * alone < 0.1


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_layer_gives_the_same_bits_wherever_experts_lie(quantization, compiled):
    """With the C++ kernels, whose rows do not hang on their batch: some tokens, one, and padding."""
    checkpoint = SafetensorsCheckpoint(resolve("tiny-moe").path)
    choices = choose("cpu", dtype="float32", backend="cpu", quantization=quantization)
    x = torch.randn(13, checkpoint.config.hidden_size, generator=torch.Generator().manual_seed(1))
    padding = torch.arange(13)[:, None] == 5

    @torch.inference_mode()
    def compute(communicator, experts=None):
        layer = load_decoder(checkpoint, choices, communicator, experts).layers[1].mlp
        return torch.cat([layer(x, padding), layer(x[:1], padding[:1])])

    (alone,) = ThreadRanks(1).run(compute)
    found = []
    for size, redundant in ((2, 0), (2, 4), (4, 0), (4, 4)):
        found += ThreadRanks(size).run(partial(compute, experts=ExpertOptions(redundant)))
    assert all(torch.equal(each, found[0]) for each in found)
    assert torch.equal(found[0][0], found[0][13])
    assert (found[0] - alone).abs().max() < 1e-6
    assert not found[0][5].any()


class Counting(SafetensorsCheckpoint):
    """Says what has been read of it."""

    def __init__(self, directory):
        super().__init__(directory)
        self.read = {}

    def load(self, name):
        tensor = super().load(name)
        self.read[name] = tensor.nbytes
        return tensor


@pytest.mark.parametrize(("size", "redundant"), [(2, 0), (4, 0), (4, 4)])
def test_a_rank_reads_and_holds_its_own_experts_only(size, redundant, tiny_directory):
    whole = SafetensorsCheckpoint(tiny_directory("qwen3_moe")[0])
    plan = ExpertPlan.of(whole.config, size, redundant)
    one_expert = 3 * whole.config.hidden_size * whole.config.moe.intermediate_size * 4
    for rank in range(size):
        checkpoint, mine = Counting(whole.path), plan.held(rank)
        communicator = ThreadRanks(size).run(lambda each: each)[rank]
        choices = choose("cpu", dtype="float32", backend="torch")
        decoder = load_decoder(checkpoint, choices, communicator, ExpertOptions(redundant))
        read = sum(size for name, size in checkpoint.read.items() if ".experts." in name)
        held = sum(layer.mlp.gate_up.nbytes + layer.mlp.down.nbytes for layer in decoder.layers)
        assert read == held == one_expert * sum(map(len, mine.values()))
        assert read <= one_expert * len(mine) * (8 + redundant) // size


def test_slices_make_up_the_whole(tiny_directory):
    """Each expert's tensor is whole on one rank; attention is cut, as it is without."""
    whole = SafetensorsCheckpoint(tiny_directory("qwen3_moe")[0])
    plan = ExpertPlan.of(whole.config, 4)
    slices = [ShardedCheckpoint(whole, rank, 4, plan) for rank in range(4)]
    for part in weight_plan(whole.config):
        shapes = [cut.load(part.name).shape for cut in slices if part.name in cut.shapes]
        if ".experts." in part.name:
            assert shapes == [part.shape]
        else:
            assert len(shapes) == 4
