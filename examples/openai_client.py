"""The official OpenAI client: a chat that streams, then an answer that is held to a JSON schema.

    miniserve serve smollm2                                  # in another terminal; pip install '.[serve]' openai
    python examples/openai_client.py http://127.0.0.1:8000/v1

With a schema the server lets the model choose only among tokens that keep to it: what comes is JSON of that form,
whatever the model is, unless `max_tokens` cuts it off, which `finish_reason` says.
"""

import json
import sys

from openai import OpenAI

RIDDLE = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 40}, "sure": {"enum": ["yes", "no"]}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def main(url: str) -> None:
    client = OpenAI(base_url=url, api_key="none")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "What has roots that nobody sees, and is taller than trees?"}]
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=40, stream=True, seed=1):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    held = {"type": "json_schema", "json_schema": {"name": "riddle", "schema": RIDDLE}}
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=400, response_format=held, seed=1)
    (choice,) = reply.choices
    if choice.finish_reason != "stop":
        raise SystemExit(f"the answer was cut off: {choice.message.content}")
    print("\n" + json.dumps(json.loads(choice.message.content)))


if __name__ == "__main__":
    main(sys.argv[1])
