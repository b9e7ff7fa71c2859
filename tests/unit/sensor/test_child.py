"""What a bpftrace child is started with."""

from kwsiem.sensor.child import environment


def test_settings_go_by_the_names_that_this_version_knows():
    old = environment((0, 17, 0), {"strlen": "100", "map_keys": "8192"})
    assert (old["BPFTRACE_STRLEN"], old["BPFTRACE_MAP_KEYS_MAX"]) == ("100", "8192")
    assert old["BPFTRACE_PERF_RB_PAGES"] == "64"
    new = environment((0, 27, 0), {"strlen": "100"})
    assert (new["BPFTRACE_MAX_STRLEN"], new["BPFTRACE_PERF_RB_PAGES"]) == ("256", "1024")


def test_memory_of_the_compiler_goes_back_and_nothing_of_ours_is_inherited(monkeypatch):
    monkeypatch.setenv("BPFTRACE_STRLEN", "9")
    assert environment((0, 17, 0), {}) == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "HOME": "/",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "BPFTRACE_PERF_RB_PAGES": "64",
    }
