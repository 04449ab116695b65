"""The catalogue: every number sourced and sane, sums that are sums, the traps of names and of sparse peaks."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import miniserve.hardware.catalog as module
from miniserve.errors import CorruptFileError, InvalidRequestError
from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.catalog_file import read_catalog
from miniserve.hardware.devices import Accelerator, Catalog, System, plain
from miniserve.hardware.figures import MARKS, Figure

FILE = Path(module.__file__).with_name("catalog.toml")
SHARED = Path(__file__).parents[3] / "shared/data/hardware.json"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def every_figure(catalog: Catalog) -> list[tuple[str, Figure]]:
    entries = [*catalog, *catalog.tiers.values()]
    figures = [(f"{entry.key}.{name}", figure) for entry in entries for name, figure in entry.all_figures()]
    return [(name, one) for name, figure in figures for one in (figure, *figure.also)]


def test_every_number_has_a_listed_source_and_a_mark(catalog):
    figures = every_figure(catalog)
    assert len(figures) > 300
    for name, figure in figures:
        assert catalog.sources[figure.source.key] is figure.source, name
        assert figure.mark in MARKS, name
        assert figure.value > 0, name
    assert len({mark[0] for mark in MARKS}) == len(MARKS), "a mark's letter says which it is"


def test_every_source_is_used_and_can_be_found(catalog):
    used = {figure.source.key for _, figure in every_figure(catalog)}
    used |= {source.key for one in catalog.accelerators.values() for source in one.checked_against}
    assert used == set(catalog.sources)
    for source in catalog.sources.values():
        assert source.url.startswith("https://")
        assert re.match(r"20\d\d", source.date)
        assert source.title
        assert source.publisher


def test_what_ships_was_checked_against_a_second_source(catalog):
    for one in catalog.accelerators.values():
        own = {one.figures["memory_bytes"].source.key}
        others = {source.key for source in one.checked_against} - own
        assert others or one.kind == "dpu" or one.key == "rubin-cpx", one.key


def test_units_are_plain(catalog):
    units = {"bytes": "B", "bytes_per_s": "B/s", "flops": "FLOP/s", "_w": "W"}
    for name, figure in every_figure(catalog):
        quantity = name.partition(".")[2]
        ending = next((u for end, u in reversed(units.items()) if quantity.rpartition(".")[2].endswith(end)), None)
        if "_flops." in quantity:
            ending = "FLOP/s"
        assert ending is None or figure.unit == ending, name


def test_another_source_disagrees_but_not_wildly(catalog):
    """`also` is for the same quantity: a slip of a factor of 1,000, or sparse beside dense, is not one."""
    for entry in catalog:
        for name, figure in entry.all_figures():
            low, high = figure.range
            assert high <= 2 * low, f"{entry.key}.{name}: {low:g} and {high:g}"


def test_peaks_follow_from_the_format(catalog):
    """Narrower formats are not slower, but for int8 where it was cut; what was achieved is below the peak."""
    cut = {"b300", "gb300", "rubin"}
    for one in catalog.accelerators.values():
        order = [
            one.dense_flops[name].value for name in ("fp32", "tf32", "bf16", "fp8", "fp4") if name in one.dense_flops
        ]
        assert order == sorted(order), one.key
        if {"int8", "bf16"} <= set(one.dense_flops):
            assert (one.flops("int8") < one.flops("bf16")) == (one.key in cut), one.key
        for name, figure in one.sparse_flops.items():
            if name in one.dense_flops:
                assert figure.value > one.flops(name), one.key
        for name, figure in one.achieved_flops.items():
            assert 0.4 < figure.value / one.flops(name) < 1, f"{one.key} {name}"
        if achieved := one.figures.get("achieved_bandwidth_bytes_per_s"):
            assert 0.8 < achieved.value / one.bandwidth < 1, one.key
        if one.memory == "SRAM":
            assert one.figures["sram_bytes"].value == one.memory_bytes


def test_the_plain_accessors(catalog):
    h100 = catalog.accelerator("h100")
    assert (h100.flops("bf16"), h100.bandwidth, h100.memory_bytes) == (989.4e12, 3.35e12, 80e9)
    assert h100.link_bandwidth == 450e9
    with pytest.raises(
        InvalidRequestError, match=r"H100.*no dense peak for 'fp4'; it has fp32, tf32, fp16, bf16, fp8, int8"
    ):
        h100.flops("fp4")
    with pytest.raises(InvalidRequestError, match="T4 has no dense peak for 'bf16'"):
        catalog.accelerator("T4").flops("bf16")
    with pytest.raises(InvalidRequestError, match="BlueField-4 has no 'memory_bandwidth_bytes_per_s'"):
        _ = catalog.accelerator("bluefield-4").bandwidth


def test_a_system_is_the_sum_of_its_accelerators(catalog):
    rack = catalog.system("GB300 NVL72")
    chip = catalog.accelerator("gb300")
    assert rack.accelerator is chip
    assert rack.num_accelerators == 72
    assert rack.memory_bytes == 72 * 279e9
    assert rack.bandwidth == 576e12
    assert rack.flops("fp4") == 1080e15
    assert rack.link_bandwidth == 64.8e12
    with pytest.raises(InvalidRequestError, match="one accelerator"):
        catalog.system("gb300")
    with pytest.raises(InvalidRequestError, match="system of 72 × gb300"):
        catalog.accelerator("gb300-nvl72")


def test_what_makers_state_for_the_whole_agrees_with_the_sum(catalog):
    sums = {
        "memory_bytes": lambda s: s.memory_bytes,
        "memory_bandwidth_bytes_per_s": lambda s: s.bandwidth,
        "link_bandwidth_bytes_per_s": lambda s: s.link_bandwidth,
    }
    compared = 0
    for system in catalog.systems.values():
        for name, figure in system.stated.items():
            total = sums[name](system) if name in sums else system.flops(name.removesuffix("_flops"))
            tolerance = 0.08 if "192 GB" in figure.note else 0.05  # the pod's sum takes GiB for GB
            assert figure.value == pytest.approx(total, rel=tolerance), f"{system.key} {name}"
            compared += 1
    assert compared > 25


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("H100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),  # as torch.cuda.get_device_name() says
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("gb300_nvl72", "gb300-nvl72"),
        ("Vera Rubin NVL144", "vera-rubin-nvl72"),
        ("trn2", "trainium2"),
        ("Ironwood", "tpu7x"),
        ("LPX", "lpx"),
    ],
)
def test_names_and_aliases(catalog, name, key):
    assert catalog[name].key == key


@given(data=st.data())
def test_case_and_punctuation_of_a_name_do_not_matter(data):
    catalog = load_catalog()
    entry = data.draw(st.sampled_from(list(catalog)))
    word = data.draw(st.sampled_from([entry.key, entry.name, *entry.aliases]))
    spelled = "".join(
        data.draw(st.sampled_from([c.upper(), c.lower(), f" {c}", f"{c}-", f"_{c}"])) if c.isascii() else c
        for c in word
    )
    assert catalog[spelled] is entry


@given(st.text(max_size=12))
def test_any_other_name_is_an_error_of_ours(name):
    catalog = load_catalog()
    known = {plain(word): entry for entry in catalog for word in (entry.key, entry.name, *entry.aliases)}
    if plain(name) in known:
        assert catalog[name] is known[plain(name)]
    else:
        with pytest.raises(InvalidRequestError, match="hardware"):
            _ = catalog[name]


def test_an_unknown_name_says_what_is_near(catalog):
    with pytest.raises(InvalidRequestError, match=r"'H1000' is not in the catalogue; near it: .*h100"):
        _ = catalog["H1000"]
    with pytest.raises(InvalidRequestError, match="rubin-ultra"):
        _ = catalog["rubin-ultr"]
    with pytest.raises(InvalidRequestError, match=r"it has t4, .*mi355x"):
        _ = catalog["abacus"]
    with pytest.raises(InvalidRequestError, match="not in the catalogue"):
        _ = catalog[""]


def test_groups_stand_together(catalog):
    """The tables print a heading where vendor or generation changes."""
    for entries in (catalog.accelerators.values(), catalog.systems.values()):
        groups = [(entry.vendor, entry.generation) for entry in entries]
        changes = [group for group, before in zip(groups, [None, *groups], strict=False) if group != before]
        assert len(changes) == len(set(changes))


class TestTraps:
    """What copies of these numbers most often get wrong."""

    def test_rubins_headline_is_sparse(self, catalog):
        rubin = catalog.accelerator("rubin")
        assert rubin.flops("fp4") == 35e15
        assert rubin.sparse_flops["fp4"].value == 50e15
        assert rubin.flops("fp4") == 2 * rubin.flops("fp8")

    def test_rubins_bandwidth_has_two_versions(self, catalog):
        figure = catalog.accelerator("rubin").figure("memory_bandwidth_bytes_per_s")
        assert figure.value == 22e12
        assert 19.4e12 in [other.value for other in figure.also]
        assert figure.mark == "preliminary"

    def test_nothing_unshipped_passes_for_shipped(self, catalog):
        for key in ("rubin", "rubin-ultra", "rubin-cpx", "groq-lp30", "vera-rubin-nvl72", "kyber-nvl144", "lpx"):
            for name, figure in catalog[key].all_figures():
                assert all(one.mark == "preliminary" for one in (figure, *figure.also)), f"{key}.{name}"

    @pytest.mark.parametrize(
        ("name", "meanings"),
        [
            ("NVL144", ["vera-rubin-nvl72", "kyber-nvl144"]),
            ("nvl576", ["kyber-nvl144", "rubin-ultra-nvl576"]),
            ("NVL72", ["gb200-nvl72", "gb300-nvl72", "vera-rubin-nvl72"]),
        ],
    )
    def test_a_name_that_changed_its_meaning_is_refused(self, catalog, name, meanings):
        with pytest.raises(InvalidRequestError, match="more than one meaning") as error:
            _ = catalog[name]
        assert all(key in str(error.value) for key in meanings)

    def test_nvl576_grew_fourfold(self, catalog):
        assert catalog.system("NVL576 (2025)").num_accelerators == 144
        assert catalog.system("NVL576 (2026)").num_accelerators == 576 == 8 * 72

    def test_cpx_is_said_to_be_shelved(self, catalog):
        assert "shelved" in catalog.accelerator("rubin-cpx").released

    @pytest.mark.parametrize(("ultra", "before"), [("b300", "b200"), ("gb300", "gb200")])
    def test_blackwell_ultra_cut_int8_and_doubled_exp(self, catalog, ultra, before):
        new, old = catalog.accelerator(ultra), catalog.accelerator(before)
        assert 25 < old.flops("int8") / new.flops("int8") < 35
        assert new.figure("exp_per_s").value / old.figure("exp_per_s").value == pytest.approx(2, rel=0.1)
        assert new.flops("fp4") == 1.5 * old.flops("fp4")

    def test_the_lpu(self, catalog):
        lpu, rack = catalog.accelerator("lp30"), catalog.system("lpx")
        assert (lpu.memory_bytes, lpu.bandwidth) == (500e6, 150e12)
        assert (rack.num_accelerators, rack.memory_bytes) == (256, 128e9)
        assert rack.stated["memory_bandwidth_bytes_per_s"].value == 40e15
        assert any("licence" in note for note in lpu.notes)

    def test_the_cost_arithmetic_of_the_35x(self, catalog):
        """6,000 and 90 tokens/s a GPU: 35.4 by price, 54.9 by power, as the claim's own figures give."""
        new, old = catalog.accelerator("gb300"), catalog.accelerator("h200")
        ratio = 6000 / 90
        price = new.usd_per_hour["hyperscaler_tco"].value / old.usd_per_hour["hyperscaler_tco"].value
        power = new.figure("all_in_power_w").value / old.figure("all_in_power_w").value
        assert ratio / price == pytest.approx(35.4, abs=0.05)
        assert ratio / power == pytest.approx(54.9, abs=0.05)


GOOD = """
[sources.sheet]
title = "Datasheet"
publisher = "Maker"
url = "https://example.org/"
date = "2026"
[accelerators.x1]
name = "X1"
vendor = "Maker"
generation = "X"
kind = "gpu"
released = "2026"
source = "sheet"
mark = "vendor"
memory_bytes = 80e9
tdp_w = { value = 700, also = [{ value = 750, note = "at first" }] }
[accelerators.x1.dense_flops]
bf16 = 1e15
[systems.x8]
name = "X8"
vendor = "Maker"
generation = "X"
released = "2026"
accelerator = "x1"
num_accelerators = 8
"""


def read(tmp_path: Path, text: str) -> Catalog:
    path = tmp_path / "catalog.toml"
    path.write_text(text, encoding="utf-8")
    return read_catalog(path)


def test_a_small_file_reads(tmp_path):
    catalog = read(tmp_path, GOOD)
    figure = catalog.accelerator("x1").figure("tdp_w")
    assert (figure.value, figure.mark, figure.source.title, figure.letter) == (700, "vendor", "Datasheet", "V")
    assert figure.also[0].note == "at first"
    assert figure.range == (700, 750)
    assert catalog.system("x8").flops("bf16") == 8e15


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('source = "sheet"\n', "", r"accelerators.x1.memory_bytes: has no source"),
        ('source = "sheet"\n', 'source = "other"\n', r"accelerators.x1.memory_bytes: source 'other' is not among"),
        ('mark = "vendor"\n', "", r"accelerators.x1.memory_bytes: has no mark"),
        ('mark = "vendor"\n', 'mark = "sure"\n', r"accelerators.x1.memory_bytes: mark 'sure' is none of measured"),
        ("mark =", "checked_against = ['other']\nmark =", r"accelerators.x1: source 'other' is not among"),
        ("80e9", "80", r"accelerators.x1.memory_bytes: value 80 B is not between"),
        ("80e9", '"80 GB"', r"accelerators.x1.memory_bytes: value '80 GB' is not a number"),
        ("80e9", "true", r"value True is not a number"),
        ("80e9", "nan", r"value nan B is not between"),
        ("value = 750", "value = 7", r"accelerators.x1.tdp_w.also\[0\]: value 7 W is not between"),
        ("bf16 = 1e15", "bfloat16 = 1e15", r"accelerators.x1.dense_flops: unknown key 'bfloat16'"),
        ("memory_bytes", "memory_gb", r"accelerators.x1: unknown key 'memory_gb'"),
        ('kind = "gpu"', 'kind = "toaster"', r"accelerators.x1: kind 'toaster' is none of gpu"),
        ('released = "2026"\nsource', "source", r"accelerators.x1: has no released"),
        ('accelerator = "x1"', 'accelerator = "x2"', r"systems.x8: its accelerator 'x2' is not in the catalogue"),
        ("num_accelerators = 8", "num_accelerators = 1", r"systems.x8: num_accelerators 1 is not a number above 1"),
        ('name = "X8"', 'name = "x-1"', r"the name 'x-1' is also that of x1"),
        ("https://example.org/", "a book", r"sources.sheet: url 'a book' is no web address"),
        ('date = "2026"', 'date = "last year"', r"sources.sheet: date 'last year' is not YYYY"),
        ('publisher = "Maker"\n', "", r"'sources.sheet.publisher' is missing"),
        ("[sources.sheet]", "[source.sheet]", r"unknown key 'source'"),
        ("[systems.x8]", "[ambiguous]\nx1 = ['x1', 'x8']\n[systems.x8]", r"ambiguous.x1: must be no entry's name"),
        ("[systems.x8]", "[ambiguous]\nxx = ['x8', 'x9']\n[systems.x8]", r"ambiguous.xx: must be"),
        ("[systems.x8]", "[systems.x8", r"catalog.toml cannot be read as TOML: .*line"),
    ],
)
def test_a_broken_file_is_refused_with_the_entrys_name(tmp_path, old, new, complaint):
    assert old in GOOD
    with pytest.raises(CorruptFileError, match=complaint):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_a_missing_file_or_section_is_refused(tmp_path):
    with pytest.raises(CorruptFileError, match="no-such"):
        read_catalog(tmp_path / "no-such.toml")
    with pytest.raises(CorruptFileError, match=r"has no \[systems\]"):
        read(tmp_path, GOOD.partition("[systems")[0])


def test_the_shipped_file_without_one_source_is_refused(tmp_path):
    text = FILE.read_text(encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"accelerators\.h100\..*: source 'nvidia-h100' is not among"):
        read(tmp_path, text.replace("[sources.nvidia-h100]", "[sources.nvidia-h1000]"))


def test_the_catalogue_has_every_device_collected_beside_the_project(catalog):
    """Where the collected data are at hand: nothing was lost, and no value drifted unnoticed."""
    if not SHARED.is_file():
        pytest.skip(f"{SHARED} is not here")
    keys = {"a100_40": "a100-40", "a100_80": "a100-80", "bf3": "bluefield-3", "bf4": "bluefield-4", "tpu_v7": "tpu7x"}
    keys |= {"trn2": "trainium2", "trn3": "trainium3"}
    names = {"mem_GB": ("memory_bytes", 1e9), "mem_TBps": ("memory_bandwidth_bytes_per_s", 1e12)}
    names |= {
        "scale_up_GBps": ("link_bandwidth_bytes_per_s", 1e9),
        "nic_Gbps": ("network_bandwidth_bytes_per_s", 1e9 / 8),
    }
    names |= {f: (f"dense_flops.{f}", 1e12) for f in ("fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8")}
    compared = 0
    for device in json.loads(SHARED.read_text(encoding="utf-8"))["devices"]:
        entry = catalog[keys.get(device["id"], device["id"].replace("_", "-"))]
        assert isinstance(entry, Accelerator)
        figures = dict(entry.all_figures())
        for name, (quantity, size) in names.items():
            if device.get(name) is None:
                continue
            figure = figures[quantity]
            values = [figure.value, *(other.value for other in figure.also)]
            assert any(v == pytest.approx(device[name] * size, rel=0.005) for v in values), f"{entry.key} {quantity}"
            compared += 1
    assert compared > 150


TIER = """
[tiers.host]
kind = "dram"
name = "Host"
accelerators = ["x1"]
source = "sheet"
mark = "vendor"
capacity_bytes = 1e12
read_bandwidth_bytes_per_s = 50e9
latency_s = 1e-5
"""


def test_a_memory_tier_reads_and_is_found_beside_its_accelerator(tmp_path):
    catalog = read(tmp_path, GOOD + TIER)
    tier = catalog.tier("dram", catalog.accelerator("x1"))
    assert (tier.capacity_bytes, tier.read_bandwidth, tier.latency_s, tier.shared) == (1e12, 50e9, 1e-5, False)
    assert dict(tier.all_figures())["latency_s"].source.key == "sheet"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('["x1"]', '["x2"]', r"tiers.host: its accelerator 'x2' is not in the catalogue"),
        ('["x1"]', "[]", r"tiers.host: has no accelerators"),
        ("latency_s = 1e-5\n", "", r"tiers.host: has no latency_s"),
        ("50e9", "50", r"tiers.host.read_bandwidth_bytes_per_s: value 50 B/s is not between"),
        ('source = "sheet"\n', "", r"tiers.host.capacity_bytes: has no source"),
        ('kind = "dram"', 'kind = "x1"', r"tiers.host: the name 'x1' is also that of x1"),
        ("latency_s", "lag_s = 1\nlatency_s", r"tiers.host: unknown key 'lag_s'"),
        ("\n[tiers.host]", TIER.replace("host", "other") + "\n[tiers.host]", r"tiers.host: x1 has a 'dram' already"),
    ],
)
def test_a_broken_memory_tier_is_refused(tmp_path, old, new, complaint):
    assert old in TIER
    with pytest.raises(CorruptFileError, match=complaint):
        read(tmp_path, GOOD + TIER.replace(old, new, 1))


def test_a_memory_tier_that_is_not_there_is_explained_by_those_that_are(catalog):
    h100, t4 = catalog.accelerator("h100"), catalog.accelerator("t4")
    assert list(catalog.tiers_beside(h100)) == ["dram", "nvme"]
    with pytest.raises(InvalidRequestError, match="tier 'ram' is not in the catalogue; it has dram, nvme, cmx"):
        catalog.tier("ram", h100)
    with pytest.raises(InvalidRequestError, match=r"tier 'cmx' beside a NVIDIA H100.*, and dram, nvme there"):
        catalog.tier("cmx", h100)
    with pytest.raises(
        InvalidRequestError, match="beside a NVIDIA T4, and no other there; it has that one beside h100"
    ):
        catalog.tier("dram", t4)


def test_a_memory_tier_is_slower_than_what_it_is_beside_and_nearer_ones_are_faster(catalog):
    for accelerator in catalog.accelerators.values():
        beside = list(catalog.tiers_beside(accelerator).values())
        rates = [tier.read_bandwidth for tier in beside]
        assert rates == sorted(rates, reverse=True), accelerator.key
        assert all(rate < accelerator.bandwidth / 5 for rate in rates)
        assert all(tier.capacity_bytes > accelerator.memory_bytes / 2 for tier in beside)
    measured = catalog.tiers["nvme-local"].figures["read_bandwidth_bytes_per_s"]
    assert measured.value == pytest.approx(53.0 * 2**30 / 4, rel=0.005)
    memory = catalog.tiers["bluefield-4-cmx"]
    network = catalog.accelerator("bluefield-4").network_bandwidth
    assert memory.read_bandwidth == pytest.approx(network * memory.capacity_bytes / 150e12, rel=0.005)


def test_entries_are_of_two_kinds(catalog):
    kinds = [type(entry) for entry in catalog]
    assert kinds.count(Accelerator) == len(catalog.accelerators)
    assert kinds.count(System) == len(catalog.systems)
