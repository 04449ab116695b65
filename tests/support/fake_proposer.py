"""A proposer that knows what a `FakeDevice` is going to say, and is wrong as often as it is told to be."""

from support.fake_device import VOCABULARY, alone


class FakeProposer:
    """Drafts of random length, some of them wrong from a random place on. Remembers whom it was asked about."""

    def __init__(self, rng, longest=4):
        self.rng, self.longest, self.known = rng, longest, set()

    def propose(self, requests, rooms):
        drafts = []
        for request, room in zip(requests, rooms, strict=True):
            assert 1 <= room <= self.longest
            self.known.add(request.request_id)
            draft = alone(request.token_ids, self.rng.randint(0, room))
            for position in range(self.rng.randint(0, 2 * self.longest), len(draft)):
                draft[position] = self.rng.randrange(VOCABULARY)
            drafts.append(draft)
        return drafts

    def forget(self, request):
        self.known.discard(request.request_id)
