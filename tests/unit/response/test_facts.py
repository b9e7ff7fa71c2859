import os
import socket

import pytest

from kwsiem.response import facts


def texts(found):
    return {str(entry.network) for entry in found}


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("text", ["192.0.2.7/24", "x", "", "1.2.3.4; flush", "1.2.3", "::/129", "1" * 100])
def test_what_is_no_network_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        facts.network_of(text)


def test_mapped_addresses_are_ipv4():
    assert str(facts.network_of("::ffff:192.0.2.7")) == "192.0.2.7/32"
    assert str(facts.network_of("::ffff:192.0.2.0/120")) == "192.0.2.0/24"


def test_own_addresses_and_gateways_of_this_very_host():
    assert "127.0.0.1/32" in texts(facts.addresses())
    for entry in facts.gateways():
        assert entry.rule == "gateway"


def test_resolvers_of_every_place(tmp_path):
    write(tmp_path, "etc/resolv.conf", "# x\nnameserver 127.0.0.53\nsearch example.net\nnameserver\n")
    write(
        tmp_path,
        "run/systemd/resolve/resolv.conf",
        "nameserver 192.0.2.53\nnameserver 2001:db8::53%eth0\nnameserver junk\n",
    )
    assert texts(facts.resolvers(tmp_path)) == {"127.0.0.53/32", "192.0.2.53/32", "2001:db8::53/128"}


def test_time_servers_of_every_daemon(tmp_path):
    write(
        tmp_path,
        "etc/chrony/chrony.conf",
        "pool 2.debian.pool.ntp.org iburst # pool x\n#server old\nserver 192.0.2.123\n",
    )
    write(tmp_path, "etc/chrony/sources.d/a.sources", "server a.example.net\n")
    write(tmp_path, "etc/systemd/timesyncd.conf", "[Time]\nNTP=b.example.net c.example.net\n#FallbackNTP=d\n")
    assert facts.time_server_names(tmp_path) == [
        "2.debian.pool.ntp.org", "192.0.2.123", "b.example.net", "c.example.net", "a.example.net",
    ]  # fmt: skip


def test_dhcp_servers_of_every_client(tmp_path):
    write(tmp_path, "run/systemd/netif/leases/2", "ADDRESS=192.0.2.9\nSERVER_ADDRESS=192.0.2.67\n")
    write(
        tmp_path,
        "var/lib/dhcp/dhclient.eth0.leases",
        "lease {\n  option dhcp-server-identifier 198.51.100.67;\n}\n",
    )
    write(tmp_path, "var/lib/NetworkManager/x.lease", "SERVER_ADDRESS=203.0.113.67\n")
    assert texts(facts.dhcp_servers(tmp_path)) == {"192.0.2.67/32", "198.51.100.67/32", "203.0.113.67/32"}


def test_nothing_there_is_nothing_protected(tmp_path):
    assert facts.resolvers(tmp_path) == facts.dhcp_servers(tmp_path) == []
    assert facts.time_server_names(tmp_path) == []


@pytest.mark.parametrize(
    ("title", "counts"),
    [
        ("sshd: root@pts/0", True),
        ("sshd-session: root@notty", True),
        ("sshd: root@pts/0,pts/3", True),
        ("sshd: root [priv]", False),
        ("sshd: unknown [priv]", False),
        ("sshd: root [net]", False),
        ("sshd-auth: root@pts/0 [preauth]", False),
        ("sshd: nobody@pts/0", False),
        ("sshd: x root@pts/0", False),
        ("evil sshd: root@pts/0", False),
    ],
)
def test_only_a_session_of_an_administrator_after_authentication_counts(tmp_path, title, counts):
    """A /proc with one process that holds a real established connection of this test."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        peer, address = server.accept()
        with peer:
            fd = tmp_path / "7" / "fd"
            fd.mkdir(parents=True)
            (fd / "4").symlink_to(os.readlink(f"/proc/self/fd/{peer.fileno()}"))
            (tmp_path / "7" / "net").symlink_to("/proc/self/net")
            (tmp_path / "7" / "cmdline").write_bytes(title.encode() + b"\0")
            found = facts.administrators(lambda user: user == "root", tmp_path, tmp_path)
    assert texts(found) == ({f"{address[0]}/32"} if counts else set())


def test_remote_sessions_of_logind_count_while_they_are_active(tmp_path):
    for name, text in {
        "1": "USER=root\nACTIVE=1\nREMOTE=1\nREMOTE_HOST=192.0.2.1\n",
        "2": "USER=guest\nACTIVE=1\nREMOTE=1\nREMOTE_HOST=192.0.2.2\n",
        "3": "USER=root\nACTIVE=0\nREMOTE=1\nREMOTE_HOST=192.0.2.3\n",
        "4": "USER=root\nACTIVE=1\nREMOTE=0\nREMOTE_HOST=192.0.2.4\n",
        "5": "USER=root\nACTIVE=1\nREMOTE=1\nREMOTE_HOST=name.example.net\n",
    }.items():
        write(tmp_path, f"run/systemd/sessions/{name}", text)
    found = facts.administrators(lambda user: user == "root", tmp_path, tmp_path)
    assert texts(found) == {"192.0.2.1/32"}


def test_root_is_an_administrator_and_nobody_is_not():
    assert facts.is_administrator("root")
    assert not facts.is_administrator("nobody")
    assert not facts.is_administrator("no\0such")
