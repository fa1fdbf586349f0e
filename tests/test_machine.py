"""The memory that is left, by the files of control groups."""

import pytest

from dpcnn.base import machine
from dpcnn.cluster.probes import of_rank
from dpcnn.parallel.comm import SerialComm

STAT = {
    "v2": f"anon 5\nfile {700 << 20}\nactive_file {300 << 20}\ninactive_file {400 << 20}\n",
    "v1": f"cache {700 << 20}\nactive_file {700 << 20}\n",
}


@pytest.mark.parametrize("version", STAT)
def test_the_page_cache_of_a_control_group_is_free_memory(version, tmp_path, monkeypatch):
    for name, content in {"limit": f"{1000 << 20}\n", "used": f"{900 << 20}\n", "stat": STAT[version]}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "CGROUPS", [[tmp_path / name for name in ("limit", "used", "stat")]])
    assert machine.memory_left() == 800 << 20
    assert of_rank(SerialComm())["memory_mb"] == 800
    (tmp_path / "limit").write_text("max\n")
    assert machine.memory_left() > 800 << 20
