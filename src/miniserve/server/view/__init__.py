"""The live view: a page that shows the engine at work, or a fleet of them, and the stream of events that it draws.

`recorder` runs in an engine's process and makes an `Update` some ten times a second while somebody watches; `watchers`
hands the newest to each open stream; `pages` are the routes; `static/` is the page, plain files that ask nothing of any
other host.

`GET /view/events` is a stream of server-sent events, each with a line of JSON as its data:

`event: engine`
    An `Engine` (see records.py): first of all, and again whenever it changes. Its `state` is "ready", "starting" (also
    after a crash) or "draining".
`event: update`
    An `Update` of one engine, which it names in a fleet. What it says of requests and blocks is the whole state as of
    its moment: whoever misses an update lacks nothing that lasts. Steps and latencies are those since the update
    before; a watcher that reads too slowly gets the newest update of each engine when it reads again, and finds out
    from `totals.steps` and the steps' `index` what it did not get. While nothing changes, none is sent.
A comment comes when there has been nothing else for ten seconds.

What is in it: numbers. A request is a number that its own client finds in the response's header `x-engine-request`: the
server's number for it, under which it appears in every engine of a fleet that it comes to. There are no prompts, no
tokens, no outputs, and nobody's name or key.
Who may watch: where no key is needed, everybody; else who has a key whose tenant may (`--api-key`'s may, one of a file
of keys if it has `watch = true`): how long others' prompts are, and when they come, is not every tenant's business.
"""
