"""From suite files to cases: what is chosen, in what order, and what is refused in words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge.errors import UsageError
from clustergauge.model import Cpu
from clustergauge.object_url import ObjectUrl
from clustergauge.plan import Suite, Wish, left_out, load_probes, load_suite, plan
from clustergauge.probe import Needs, Probe, probe
from tests.made import machine

ROOT = Path(__file__).parent.parent


def made(name: str, needs=None, **axes) -> Probe:
    return probe(name, needs=needs, **axes)(lambda ctx, **params: None)


def never(**_params):
    raise UsageError("never")


PROBES = {
    p.name: p
    for p in (
        made("plain", backend=("a", "b"), size=(1024, 2048)),
        made("stream", lambda op, size: Needs(working_set=size), op=("copy", "add"), size=(64 << 20,)),
        made("picky", never),
        made("heavy", Needs(modules=("torch",))),
        made("disk", Needs(target=True), op=("read",)),
        made(
            "blocks",
            lambda block, depth: Needs(target=True, refused="" if depth != 3 else "three is a crowd"),
            block=("4KiB", "1MiB"),
            depth=(1, 32),
        ),
        made("store", Needs(target=True, objects=True), op=("get",)),
        made(
            "ranks",
            lambda backend: Needs(
                world="mpi" if backend == "mpi" else "torch", ranks=2, device="cuda" if backend == "nccl" else "cpu"
            ),
            backend=("mpi", "gloo", "nccl"),
        ),
        made("fresh", Needs(device="cuda", arch=90), dtype=("fp8",)),
        made("missing", Needs(modules=("no_such_module",))),
        made("jit", lambda backend: Needs(interpreter=backend == "triton"), backend=("triton", "torch")),
    )
}


def suite(tmp_path: Path, text: str) -> Suite:
    path = tmp_path / "s.toml"
    path.write_text('title = "t"\n' + text)
    return load_suite(path)


def cases(tmp_path, text, here=None, **wish):
    return plan(suite(tmp_path, text), PROBES, here or machine(), Wish(**wish))


def test_axes_multiply_and_sizes_are_read(tmp_path):
    found = cases(tmp_path, '[[cases]]\nprobe = "plain"\nsize = ["4KiB", 16]\nbudget_s = 0.5\n')
    assert [c.case for c in found] == [
        "plain/backend=a/size=4KiB",
        "plain/backend=a/size=16B",
        "plain/backend=b/size=4KiB",
        "plain/backend=b/size=16B",
    ]
    assert found[0].params == {"backend": "a", "size": 4096}
    assert {c.budget_s for c in found} == {0.5}


def test_globs_and_words_choose(tmp_path):
    text = '[[cases]]\nprobe = "plain"\n'
    assert len(cases(tmp_path, text, globs=["plain/*/size=1KiB"])) == 2
    assert len(cases(tmp_path, text, globs=["backend=a"])) == 2
    assert len(cases(tmp_path, text, globs=["*a/size=1KiB", "*b/size=2KiB"])) == 2
    with pytest.raises(UsageError, match="no case matches 'nothing'"):
        cases(tmp_path, text, globs=["nothing"])


def test_values_of_axes_can_be_replaced_and_are_checked(tmp_path):
    text = '[[cases]]\nprobe = "plain"\n'
    assert [c.params["size"] for c in cases(tmp_path, text, values={"size": ["1MiB"], "backend": ["a"]})] == [1 << 20]
    for values, words in (
        ({"backend": ["z"]}, "--set backend=z: no probe knows this value .known: a, b, mpi"),
        ({"nothing": ["z"]}, "--set nothing: no probe has this axis"),
        ({"size": ["much"]}, "not a size: 'much'"),
    ):
        with pytest.raises(UsageError, match=words):
            cases(tmp_path, text, values=values)


def test_of_counted_things_any_number_between_those_declared_is_known(tmp_path):
    text = '[[cases]]\nprobe = "blocks"\n'
    found = cases(tmp_path, text, values={"block": ["12K", "4096", "1024k"], "depth": ["31"]}, targets=["/x"])
    assert [c.params["block"] for c in found] == ["12KiB", "4KiB", "1MiB"]
    assert {c.params["depth"] for c in found} == {31}
    assert [c.params["block"] for c in cases(tmp_path, f"{text}block = [8192]\ndepth = 1\n", targets=["/x"])] == ["8KiB"]
    for axis, value, words in (
        ("depth", "33", "--set depth=33: no probe knows this value .known: any whole number from 1 to 32"),
        ("depth", "0", "any whole number from 1 to 32"),
        ("depth", "4KiB", "any whole number from 1 to 32"),
        ("depth", "2.5", "any whole number from 1 to 32"),
        ("block", "2MiB", "known: any size from 4KiB to 1MiB"),
        ("block", "2K", "known: any size from 4KiB to 1MiB"),
        ("block", "small", "--set block=small: no probe knows this value .known: any size from 4KiB to 1MiB"),
        ("block", "-1", "known: any size from 4KiB to 1MiB"),
    ):
        with pytest.raises(UsageError, match=words):
            cases(tmp_path, text, values={axis: [value]}, targets=["/x"])
    for line, words in (
        ("depth = 33", "any whole number from 1 to 32"),
        ("depth = 1.5", "any whole number"),
        ("depth = 1.0", "any whole number"),
        ("depth = true", "any whole number"),
        ("block = 2048", "any size from 4KiB to 1MiB"),
        ("block = true", "any size from 4KiB to 1MiB"),
    ):
        with pytest.raises(UsageError, match=rf"cases\[1\]: .*probe 'blocks' knows {words}"):
            cases(tmp_path, f"{text}{line}\n", targets=["/x"])


def test_what_a_probe_calls_as_others_call_something_else_has_the_values_that_it_declares(tmp_path):
    probes = {p.name: p for p in (made("tiles", block=(16, 64)), made("ways", block=("row", "column"), depth=(0.5, 2)))}

    def planned(line, **values):
        return plan(suite(tmp_path, line), probes | {"blocks": PROBES["blocks"]}, machine(), Wish(values=values, targets=["/x"]))

    tiles, ways = ('[[cases]]\nprobe = "tiles"\n', '[[cases]]\nprobe = "ways"\n')
    assert [c.params["block"] for c in planned(tiles, block=["32"])] == [32]
    assert [c.params["block"] for c in planned(f"{tiles}block = 48\n")] == [48]
    assert {c.params["block"] for c in planned(ways, block=["row", "32"])} == {"row"}
    three = planned(f'{tiles}{ways}[[cases]]\nprobe = "blocks"\n', block=["8192", "64"])
    assert {c.params["block"] for c in three} == {"8KiB", 64}
    for line, words in (
        (f"{tiles}block = 65", "block=65: probe 'tiles' knows any whole number from 16 to 64"),
        (f'{ways}block = "4KiB"', "block=4KiB: probe 'ways' knows row, column"),
        (f"{ways}depth = 1", "depth=1: probe 'ways' knows 0.5, 2"),
    ):
        with pytest.raises(UsageError, match=f"{words}$"):
            planned(line)
    del probes["tiles"]
    with pytest.raises(UsageError, match=r"\(known: any size from 4KiB to 1MiB, row, column\)$"):
        planned(ways, block=["line"])


def test_what_has_no_meaning_anywhere_is_known_beforehand(tmp_path):
    text = '[[cases]]\nprobe = "blocks"\nblock = "4KiB"\ndepth = [2, 3]\n'
    assert [c.skip for c in cases(tmp_path, text, targets=["/x"])] == ["", "three is a crowd"]
    assert [c.skip for c in cases(tmp_path, text)] == ["no target folder"] * 2


def test_a_value_that_one_probe_knows_is_no_mistake_for_the_others(tmp_path):
    text = '[[cases]]\nprobe = "plain"\n[[cases]]\nprobe = "ranks"\n'
    assert {c.probe for c in cases(tmp_path, text, values={"backend": ["mpi"]})} == {"ranks"}
    with pytest.raises(UsageError, match=r"cases\[1\]: backend=mpi: probe 'plain' knows a, b"):
        cases(tmp_path, '[[cases]]\nprobe = "plain"\nbackend = "mpi"\n')


def test_what_a_set_leaves_out_is_named(tmp_path):
    text = suite(tmp_path, '[[cases]]\nprobe = "plain"\n[[cases]]\nprobe = "ranks"\n[[cases]]\nprobe = "blocks"\n')

    def said(*globs, **values):
        return left_out(text, PROBES, Wish(globs, values=values))

    assert said(backend=["mpi"]) == ["--set backend=mpi leaves out plain (backend: a, b)"]
    assert said(backend=["mpi", "b"], depth=["2"]) == []
    assert said("plain", backend=["mpi", "b", "gloo"]) == ["no case has backend=mpi,gloo: plain (backend: a, b)"]
    assert said(depth=["2", "64"]) == ["no case has depth=64: blocks (depth: any whole number from 1 to 32)"]
    assert said("ranks", "blocks", backend=["mpi"]) == []
    assert said("size=1KiB", size=["1KiB"], backend=["mpi", "gloo"]) == [
        "--set backend=mpi,gloo leaves out plain (backend: a, b)"
    ]
    assert said("blocks", depth=["64"], block=["2MiB"]) == [
        "--set depth=64 leaves out blocks (depth: any whole number from 1 to 32)",
        "--set block=2MiB leaves out blocks (block: any size from 4KiB to 1MiB)",
    ]
    words = r"no case matches 'plain' \(--set backend=mpi leaves out plain \(backend: a, b\)\)"
    with pytest.raises(UsageError, match=words):
        cases(tmp_path, '[[cases]]\nprobe = "plain"\n', globs=["plain"], values={"backend": ["mpi"]})


def test_what_was_not_chosen_is_not_asked_what_it_needs(tmp_path):
    text = '[[cases]]\nprobe = "picky"\n[[cases]]\nprobe = "plain"\n'
    assert len(cases(tmp_path, text, globs=["plain"])) == 4
    with pytest.raises(UsageError, match="never"):
        cases(tmp_path, text, globs=["picky"])


def test_ranks_that_the_user_made_too_few_are_no_lack_of_cores(tmp_path):
    (case,) = cases(tmp_path, '[[cases]]\nprobe = "ranks"\nbackend = "mpi"\n', machine(cores=2), ranks=1)
    assert case.skip == "needs 2 ranks, 1 was asked for (--ranks)"


def test_every_gpu_measures_alone_and_ranks_are_all_of_them(tmp_path):
    found = cases(tmp_path, '[[cases]]\nprobe = "plain"\nbackend = "a"\nsize = 1024\n', machine(gpus=3))
    assert [c.device for c in found] == ["cuda:0", "cuda:1", "cuda:2"]
    (nccl,) = cases(tmp_path, '[[cases]]\nprobe = "ranks"\nbackend = "nccl"\n', machine(gpus=8))
    assert (nccl.ranks, nccl.device, nccl.world, nccl.skip) == (8, "cuda:all", "torch", "")


@pytest.mark.parametrize(
    ("text", "here", "words"),
    [
        ('probe = "ranks"\nbackend = "nccl"', machine(), "no GPU"),
        ('probe = "ranks"\nbackend = "nccl"', machine(gpus=1), "needs 2 ranks, here is 1 GPU"),
        ('probe = "ranks"\nbackend = "mpi"', machine(cores=1), "needs 2 ranks, here is 1 core"),
        ('probe = "fresh"', machine(gpus=1), "needs sm_90, NVIDIA A100-SXM4-80GB is sm_80"),
        ('probe = "missing"', machine(), "the package no_such_module is not installed"),
        ('probe = "disk"', machine(), "no target folder"),
        ('probe = "plain"\ndevice = "cuda"', machine(), "no GPU"),
    ],
)
def test_what_cannot_run_says_why(tmp_path, monkeypatch, text, here, words):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert {c.skip for c in cases(tmp_path, f"[[cases]]\n{text}\n", here)} == {words}


def test_an_axis_without_values_is_named_and_not_the_device(tmp_path):
    with pytest.raises(UsageError, match=r"^cases\[1\]: backend = \[\]: without a value there is no case"):
        cases(tmp_path, '[[cases]]\nprobe = "plain"\nbackend = []\n')


def test_what_may_hide_gpus_is_said_beside_that_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "banana\x1b")
    (skip,) = {c.skip for c in cases(tmp_path, '[[cases]]\nprobe = "plain"\ndevice = "cuda"\n')}
    assert skip.startswith("no GPU (CUDA_VISIBLE_DEVICES is 'banana")
    assert skip.isprintable()
    (seen,) = {c.skip for c in cases(tmp_path, '[[cases]]\nprobe = "plain"\ndevice = "cuda"\n', machine(gpus=1))}
    assert seen == ""


@pytest.mark.parametrize(("size", "fits"), [("12GiB", True), ("1TiB", False)])
def test_what_no_memory_of_this_machine_holds_is_skipped_when_planned(tmp_path, size, fits):
    skips = {c.skip for c in cases(tmp_path, f'[[cases]]\nprobe = "stream"\nsize = "{size}"\n')}
    assert skips == {"" if fits else "needs 1TiB of memory, 16GiB is all there is"}
    gpu = machine(gpus=1)
    gpu = msgspec.structs.replace(gpu, gpus=[msgspec.structs.replace(gpu.gpus[0], memory_bytes=80 << 30)])
    skips = {c.skip for c in cases(tmp_path, f'[[cases]]\nprobe = "stream"\nsize = "{size}"\n', gpu)}
    assert skips == {"" if fits else "needs 1TiB of memory, 80GiB is all there is"}
    assert {c.skip for c in cases(tmp_path, f'[[cases]]\nprobe = "stream"\nsize = "{size}"\n', machine(gpus=1))} == {
        ""
    }  # unknown


def test_a_gpu_is_not_skipped_for_what_another_cannot(tmp_path):
    here = machine(gpus=2)
    here = msgspec.structs.replace(here, gpus=[here.gpus[0], msgspec.structs.replace(here.gpus[1], arch="sm_90")])
    found = {c.device: c.skip for c in cases(tmp_path, '[[cases]]\nprobe = "fresh"\n', here)}
    assert found == {"cuda:0": "needs sm_90, NVIDIA A100-SXM4-80GB is sm_80", "cuda:1": ""}


@pytest.mark.parametrize(
    ("backend", "ranks", "here", "words"),
    [
        ("mpi", 64, machine(cores=4), ""),
        ("mpi", 65, machine(cores=4), "65 ranks on 4 processors: more than 64 time the scheduler"),
        ("mpi", 17, machine(cores=1), "17 ranks on 1 processor: more than 16 time the scheduler"),
        ("mpi", 99999, machine(), "99999 ranks on 2 processors: more than 32 time the scheduler"),
        ("gloo", 16, machine(memory_bytes=2400 << 20), ""),
        ("gloo", 16, machine(memory_bytes=2399 << 20), "16 ranks need 2400 MiB for themselves, here are 2399"),
        ("mpi", 16, machine(memory_bytes=2399 << 20), ""),
        ("nccl", 2, machine(gpus=2), ""),
        ("nccl", 4, machine(gpus=3), "4 ranks need a GPU each, here are 3"),
        ("nccl", 4, machine(gpus=1), "4 ranks need a GPU each, here is 1"),
    ],
)
def test_more_ranks_than_can_run_say_why(tmp_path, backend, ranks, here, words):
    (case,) = cases(tmp_path, f'[[cases]]\nprobe = "ranks"\nbackend = "{backend}"\n', here, ranks=ranks)
    assert (case.ranks, case.skip) == (ranks, words)


@pytest.mark.parametrize(("ranks", "skip"), [(None, False), (8, False), (9, True)])
def test_ranks_over_several_nodes_are_too_many_only_if_they_are_on_each(tmp_path, ranks, skip):
    for backend, here in (("nccl", machine(gpus=8)), ("mpi", machine(cores=1, memory_bytes=8 * 24 << 20))):
        wish = {"ranks": ranks or 8, "nodes": 3} if backend == "mpi" else {"ranks": ranks, "nodes": 3}
        (case,) = cases(tmp_path, f'[[cases]]\nprobe = "ranks"\nbackend = "{backend}"\n', here, **wish)
        assert (case.ranks, bool(case.skip)) == (3 * (ranks or 8), skip)


def test_gpus_that_this_torch_cannot_use_are_not_taken_for_usable(tmp_path):
    here = machine(gpus=1, versions={"torch": "2.13.0+cpu"})
    assert {c.device for c in cases(tmp_path, '[[cases]]\nprobe = "plain"\n', here)} == {"cpu:0"}
    (skipped,) = cases(tmp_path, '[[cases]]\nprobe = "heavy"\ndevice = "cuda"\n', here)
    assert "this torch is built for CPUs only" in skipped.skip


def test_the_interpreter_serves_only_where_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    text = '[[cases]]\nprobe = "jit"\n'
    assert [(c.interpret, c.device) for c in cases(tmp_path, text)] == [(False, "cpu:0"), (True, "cpu:0")]
    assert [c.interpret for c in cases(tmp_path, text, machine(gpus=1))] == [False, False]
    (gpu_only,) = cases(tmp_path, '[[cases]]\nprobe = "jit"\nbackend = "triton"\ndevice = "cuda"\n')
    assert (gpu_only.interpret, gpu_only.skip) == (False, "no GPU")


def test_of_sizes_that_must_exceed_the_cache_the_first_that_does_is_taken(tmp_path):
    text = '[[cases]]\nprobe = "stream"\nsize = ["64MiB", "1GiB", "4GiB"]\nfirst_of = "size"\n'
    small, large = (machine(cpu=Cpu(model="c", cores=1, threads=1, allowed="0", llc_bytes=b << 20)) for b in (16, 2048))
    assert [(c.params["op"], c.params["size"], c.skip) for c in cases(tmp_path, text, small)] == [
        ("copy", 64 << 20, ""),
        ("add", 64 << 20, ""),
    ]
    copy, _ = cases(tmp_path, text, large)
    assert (copy.params["size"], copy.skip) == (4 << 30, "4GiB is below 4 × the last-level cache of 2GiB")
    assert {c.skip for c in cases(tmp_path, text.replace('first_of = "size"', ""), small)} == {""}
    with pytest.raises(UsageError, match=r"cases\[1\].first_of: probe 'stream' has no axis 'length'"):
        cases(tmp_path, text.replace('"size"', '"length"'), small)


def test_blocks_for_another_device_are_left_out(tmp_path):
    text = '[[cases]]\nprobe = "plain"\ndevice = "cpu"\n[[cases]]\nprobe = "plain"\ndevice = "cuda"\n'
    assert {c.device for c in cases(tmp_path, text, machine(gpus=1))} == {"cuda:0"}
    assert {c.device for c in cases(tmp_path, text, machine(gpus=1), device="cpu")} == {"cpu:0"}


def test_launches_come_one_after_the_other(tmp_path):
    found = cases(
        tmp_path, '[[cases]]\nprobe = "disk"\n[[cases]]\nprobe = "ranks"\nbackend = "mpi"\n', launches=2, targets=[str(tmp_path)]
    )
    assert [(c.launch, c.probe) for c in found] == [(0, "disk"), (0, "ranks"), (1, "disk"), (1, "ranks")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[cases]\n", "not TOML"),
        ("cases = 3\n", r"needs \[\[cases\]\] tables"),
        ('[[cases]]\nprobe = "nobody"\n', "unknown probe 'nobody'"),
        ('[[cases]]\nprobe = "plain"\ncolour = "red"\n', "probe 'plain' has no axis 'colour'"),
        ('[[cases]]\nprobe = "plain"\nbudget_s = -1\n', r"cases\[1\].budget_s must be a positive number"),
        ('[[cases]]\nprobe = "plain"\nbudget_s = "long"\n', "budget_s"),
        ('[[cases]]\nprobe = "plain"\nsize = "1 parsec"\n', "not a size"),
        ('surprise = 1\n[[cases]]\nprobe = "plain"\n', "surprise"),
        ('schema = 9\n[[cases]]\nprobe = "plain"\n', "schema 9 is not known"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line(tmp_path, text, words):
    with pytest.raises(UsageError, match=words) as caught:
        cases(tmp_path, text)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=300))
def test_no_suite_file_breaks_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("s") / "s.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        plan(load_suite(path), PROBES, machine(), Wish())


def test_probes_of_one_name_are_refused():
    with pytest.raises(UsageError, match="is defined by both"):
        load_probes(["tests.faults.misbehaving", "tests.faults.twin"])


@pytest.mark.parametrize("name", [p.stem for p in (ROOT / "suites").glob("*.toml")])
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_our_own_suites_fit_our_own_probes(name, gpus, tmp_path):
    import collectives
    import kernels
    import storage_io

    probes = load_probes([*kernels.PROBES, *collectives.PROBES, *storage_io.PROBES])
    found = plan(load_suite(ROOT / "suites" / f"{name}.toml"), probes, machine(gpus=gpus), Wish(targets=[str(tmp_path)]))
    assert any(not c.skip for c in found)
    assert len({(c.case, c.device, c.launch) for c in found}) == len(found)


def test_folders_and_object_stores_are_different_targets(tmp_path):
    text = '[[cases]]\nprobe = "disk"\n[[cases]]\nprobe = "store"\n'
    to = ObjectUrl("bucket", "some/where")
    disk, store = cases(tmp_path, text, targets=[str(to)])
    assert (disk.skip, store.skip) == ("no target folder", "")
    assert store.target == "s3://bucket/some/where"
    disk, store = cases(tmp_path, text, targets=[str(tmp_path)])
    assert (disk.skip, disk.target) == ("", str(tmp_path))
    assert store.skip == "no object store: name one with --target s3://bucket/prefix"
    disk, store = cases(tmp_path, text)
    assert disk.skip == "no target folder"
    assert store.skip == "no object store: name one with --target s3://bucket/prefix"
