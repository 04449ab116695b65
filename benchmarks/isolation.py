"""Can a tenant hear by timing what another one has asked? The attack of `miniserve.bench.isolation`, on real servers.

Three things that a server keeps are attacked: KV on the device; KV that has left a small device for host memory and
disk, in a fleet of two engines whose router goes by what they have cached; and compiled JSON schemas. Each attack is
made within one tenant, where it must succeed, and from one tenant on another, where it must not, pair by pair in turn.

    python benchmarks/isolation.py [--pairs 100] [--model smollm2]

writes results/isolation.json. Exits with 1 if an attack within a tenant fails or one across tenants succeeds.
"""

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from miniserve.bench.isolation import Asker, Guess, attack, judge, long_prompt, long_schema
from miniserve.bench.record import write_record
from miniserve.bench.serving.own_server import own_server
from miniserve.server.access import hash_key, new_key

ALPHA = 0.01  # of all attacks together, which share it out evenly (Bonferroni)
CONFIDENCE = 0.95
KEPT: dict[str, tuple[Guess, tuple[str, ...]]] = {
    "KV on the device": (long_prompt(40), ()),
    "KV in tiers of a fleet": (
        long_prompt(40),
        ("--decode", "2", "--router", "kv-aware", "--kv-host-mib", "64", "--kv-disk-mib", "512"),
    ),
    "compiled schemas": (long_schema(300), ()),
}
DEVICE_MIB = {"KV on the device": 256, "KV in tiers of a fleet": 48, "compiled schemas": 256}


def run(model: str, name: str, num_pairs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Both attacks on one server."""
    guess, options = KEPT[name]
    keys, file = [new_key(), new_key()], folder / "keys.toml"
    file.write_text("".join(f'[tenant{at}]\nsha256 = "{hash_key(key)}"\n' for at, key in enumerate(keys)))
    disk = ("--kv-disk", str(folder / name)) if "--kv-disk-mib" in options else ()
    given = [*options, *disk, "--kv-cache-mib", str(DEVICE_MIB[name]), "--max-model-len", "1024", "--no-live-view"]
    draw, found = random.Random(seed), {"within": [], "across": []}
    with (
        own_server(model, ["--served-model-name", "m", "--api-keys-file", str(file), *given]) as url,
        Progress() as bar,
    ):
        askers = [Asker(url, "m", key) for key in (keys[0], keys[0], keys[1])]
        victim, itself, other = askers
        for asker in askers:
            asker.ask(guess(draw))  # warm
        for _ in bar.track(range(num_pairs), description=name):
            found["within"].append(attack(victim, itself, guess, draw))
            found["across"].append(attack(victim, other, guess, draw))
    return {kind: asdict(judge(pairs, CONFIDENCE)) for kind, pairs in found.items()}


def main() -> None:
    """Attack, write what was seen, and say whether it is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/isolation.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        attacks = {name: run(args.model, name, args.pairs, args.seed, Path(folder)) for name in KEPT}
    level = ALPHA / (2 * len(attacks))
    held = {
        name: found["within"]["p_value"] < level and not found["across"]["p_value"] < level
        for name, found in attacks.items()
    }
    data = {"model": args.model, "alpha_of_each": level, "attacks": attacks, "as_it_must_be": held}
    print(json.dumps(data, indent=2))
    options = f" --pairs {args.pairs} --model {args.model} --seed {args.seed}"
    write_record(args.out, data, f"python benchmarks/isolation.py{options}", "cpu")
    if not all(held.values()):
        sys.exit("isolation is not as it must be")


if __name__ == "__main__":
    main()
