"""Storage in front of a proxy that damages what passes: nothing is lost, doubled or cut short."""

import pytest

from pipeline.storage import open_storage
from tests.fault_proxy import RemoteFaults, Rule

SERVERS = ["moto", pytest.param("rgw", marks=pytest.mark.s3)]


@pytest.fixture(params=SERVERS)
def proxy(request):
    return request.getfixturevalue(f"{request.param}_proxy")


def test_an_idle_proxy_changes_nothing_and_its_rules_can_be_set_from_afar(proxy):
    storage = open_storage(proxy.new_directory())
    storage.put("a/b c+d", b"1" * 100)
    with storage.open_output("big") as output:
        output.write(b"x" * (17 << 20))
    assert storage.read_bytes("a/b c+d", 100) == b"1" * 100
    assert storage.size_bytes("big") == 17 << 20
    remote = RemoteFaults(proxy.endpoint)
    remote.add(Rule("500", count=1))
    assert storage.exists("big")
    assert [event.fault for event in remote.events()].count("500") == 1
    assert remote.events() == proxy.events()
