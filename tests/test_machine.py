"""The memory that is left, by the files of control groups."""

import pytest

from dpcnn.base import machine

STAT = {"v2": "anon 5\nfile 700\nactive_file 300\ninactive_file 400\n", "v1": "cache 700\nactive_file 700\n"}


@pytest.mark.parametrize("version", STAT)
def test_the_page_cache_of_a_control_group_is_free_memory(version, tmp_path, monkeypatch):
    for name, content in {"limit": "1000\n", "used": "900\n", "stat": STAT[version]}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "CGROUPS", [[tmp_path / name for name in ("limit", "used", "stat")]])
    assert machine.memory_left() == 800
    (tmp_path / "limit").write_text("max\n")
    assert machine.memory_left() > 800
