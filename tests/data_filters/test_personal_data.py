"""Personal data is found and masked; programs that only look like it are left alone."""

import ast

import pytest

from data_filters.personal_data import MASKED_EMAIL, MASKED_IP, MASKED_IP6, MASKED_KEY, PersonalData, find, mask
from data_filters.repair import repair

PEM = "-----BEGIN RSA PRIVATE KEY-----{}-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "code",
    [
        "y = x@w.sum()", "@app.route('/')", "z = (a@b.T).info()", "z = a@b.info()", "a @ b.com", "v1.2.3.4",
        "1.2.3.4.5", "a[1::2]", "x[2000::3]", "x[2001:2002:3]", "x[2023:]", "12:30:45", "2024:01:02:03",
        "00:1B:44:11:3A:B7", "2a1b:44:11", "std::vector<int>", "2bad::std::x", "f'{x:2000:}'",
        "::1 fe80::1 2001:db8::1 ::", "127.0.0.1",
        "10.0.0.1", "300.1.1.1", "user@example.com", "sk-learn", "task-force-of-people-with-many-long-names-in-it",
        "AKIAIOSFODNN7EXAMPLE", "self.ghp_" + "x" * 10, "hf_hub_download(repo_id)", PEM.format("\n...\n"),
        "eyJhbGciOiJIUzI1NiJ9", "_" + "A1" * 20, "a" * 5_000, "-" * 5_000, "://" * 1_000, "1." * 3_000,
    ],
)  # fmt: skip
def test_programs_are_left_alone(code):
    assert mask(code)[0] == code
    assert find(code) == {"email": 0, "ip": 0, "key": 0}


@pytest.mark.parametrize(
    ("secret", "masked", "kind"),
    [
        ("jane.doe+x@mail.somewhere.org", MASKED_EMAIL, "email"),
        ("8.8.8.8", MASKED_IP, "ip"),
        ("2606:4700:4700::1111", MASKED_IP6, "ip"),
        ("2a00:1450:4001:82a:0:0:0:200e", MASKED_IP6, "ip"),
        ("AKIA" + "ABCDEFGH23456777", MASKED_KEY, "key"),
        ("ghp_" + "a1B2" * 9, MASKED_KEY, "key"),
        ("github_pat_" + "a" * 22 + "_" + "b1" * 29 + "c", MASKED_KEY, "key"),
        ("glpat-" + "xY3-" * 5, MASKED_KEY, "key"),
        ("xoxb-" + "123456789012-" * 2 + "abcDEF", MASKED_KEY, "key"),
        ("sk_live_" + "a1" * 12, MASKED_KEY, "key"),
        ("AIza" + "b-9" * 11 + "cd", MASKED_KEY, "key"),
        ("sk-ant-" + "api03-" + "a-_B" * 10, MASKED_KEY, "key"),
        ("sk-" + "aB3d" * 12, MASKED_KEY, "key"),
        ("sk-proj-" + "aB3d" * 12, MASKED_KEY, "key"),
        ("hf_" + "aBcD" * 8 + "ab", MASKED_KEY, "key"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", MASKED_KEY, "key"),
        (PEM.format("\\n" + "MIIEab+/" * 12 + "\\n"), PEM.format(MASKED_KEY), "key"),
    ],
)
def test_each_kind_is_masked_anywhere_and_the_program_still_parses(secret, masked, kind):
    code = f"value = ['{secret}', \"{secret}\"]  # {secret}\n"
    text, counts = mask(code)
    assert text == f"value = ['{masked}', \"{masked}\"]  # {masked}\n"
    assert counts == {"email": 0, "ip": 0, "key": 0, kind: 3}
    ast.parse(text)
    assert mask(text)[0] == text, "what is masked is not masked again"
    assert repair(code, "code") == text
    assert repair(code, "code", mask=False) == code


def test_a_key_over_several_literals_leaves_a_program():
    lines = "".join(f'    "{"MIIEab+/" * 8}\\n"\n' for _ in range(3))
    code = f'KEY = (\n    "-----BEGIN PRIVATE KEY-----\\n"\n{lines}    "-----END PRIVATE KEY-----\\n"\n)\n'
    text, counts = mask(code)
    assert counts["key"] == 1
    assert "MIIE" not in text
    ast.parse(text)


@pytest.mark.timeout(20)
def test_a_thousand_beginnings_of_a_key_take_no_longer_than_their_text():
    hostile = "-----BEGIN RSA PRIVATE KEY-----\n" * 20_000
    key = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEab+/" * 40 + "\n-----END RSA PRIVATE KEY-----\n"
    text, counts = mask(hostile + key)
    assert counts["key"] == 1
    assert "MIIE" not in text


def test_the_rule_counts_against_its_limits():
    from tests.data_filters.test_rules import doc

    text = "a@mail.somewhere.org b@mail.somewhere.org 8.8.8.8"
    assert PersonalData(max_emails=2, max_ips=1).decide(doc(text)) is None
    assert PersonalData(max_emails=None, max_ips=None).decide(doc(text)) is None
    drop = PersonalData(max_emails=1).decide(doc(text))
    assert drop is not None
    assert (drop.reason, drop.value, drop.threshold) == ("email", 2, 1)
    with pytest.raises(ValueError, match="max_ips is -1; expected 0 or more or null"):
        PersonalData(max_ips=-1)


@pytest.mark.parametrize(
    "text",
    [
        'assert parse("1.2.3.4") < parse("1.2.3.10")', '__version__ = "4.11.0.1"', "VERSION = '4.11.0.201'",
        "Version 2.0.0.100 of the firmware", "see section 4.3.2.1 for more", "§ 4.3.2.100", "Sec. 12.1.100.4",
        "4.3.2.1 Introduction", "package==1.2.3.100", "package>=1.2.3.4,<2", "tool@1.2.3.4", "tool-1.2.3.100.zip",
        "Chrome/99.0.100.12 Safari", "upgraded to 3.2.1.100", "OID 1.3.6.1", "iso.3.6.1.2.1.1", "1.3.6.1.4.1.311",
        "LooseVersion('10.2.100.1')", "Figure 1.2.3.4", "release 5.0.0.200", "192.168.1.1:8080", "198.51.100.7",
        "203.0.113.9/24", "169.254.1.1", "0.0.0.0", "255.255.255.255", "224.0.0.1:5353",
        "git clone git@github.com:acme/tool.git", "git@gitlab.com:group/sub/tool.git", "deploy@web.acme.io:/var/www",
        "ssh://me@host.acme.io/tool", "git+ssh://git@github.com/acme/tool.git@main", "me@host.acme.io:tool.git",
        "https://token@github.com/acme/tool", "npm install left-pad@1.3.0", "actions/checkout@v4", "@app.get('/me')",
        "ssh -p 2222 -i ~/.ssh/key.pem deploy@acme.org", "$ sftp jane@acme.org", "`ssh jane@acme.org`",
        "scp a.txt b.txt jane@acme.org:", "rsync -avz dist jane@acme.org:www", 'AssemblyVersion("100.1.2.3")',
        "updated from 98.1.2.3 to 99.1.2.3", "Bumps left-pad from 98.1.2.3 to 99.1.2.3", "Google Chrome 101.2.3.4",
        '"left-pad": "^101.2.3.4"', 'gem "x", "~> 101.2.3.4"', 'pip install "x>=101.2.3.4,<102.2.3.4"',
        "<FileVersion>101.2.3.4</FileVersion>", "@dataclass\nclass A:",
        "ns::a::b 2001::x::y", "12:30:45.123", "uses: acme/tool@main",
    ],
)  # fmt: skip
def test_versions_sections_and_remotes_are_left_alone(text):
    assert mask(text)[0] == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane@acme.org: she answers", f"write to {MASKED_EMAIL}: she answers"),
        ("mailto:jane.roe@acme.org?subject=x", f"mailto:{MASKED_EMAIL}?subject=x"),
        ("<jane@acme.org>", f"<{MASKED_EMAIL}>"),
        ("from github@acme.org", f"from {MASKED_EMAIL}"),
        ("my address is 24.16.33.7.", f"my address is {MASKED_IP}."),
        ('client_ip = "24.16.33.7"', f'client_ip = "{MASKED_IP}"'),
        ("http://24.16.33.7/index.html", f"http://{MASKED_IP}/index.html"),
        ("24.16.33.7:8080 and 24.16.33.0/24", f"{MASKED_IP}:8080 and {MASKED_IP}/24"),
        ('24.16.33.7 - - [10/Oct/2000:13:55:36] "GET /"', f'{MASKED_IP} - - [10/Oct/2000:13:55:36] "GET /"'),
        ("ssh root@24.16.33.7", f"ssh root@{MASKED_IP}"),
        ("93.184.216.34", MASKED_IP),
        ("log in as root@12.13.14.15", f"log in as root@{MASKED_IP}"),
        ('servers = ["93.184.216.34", "151.101.1.69"]', f'servers = ["{MASKED_IP}", "{MASKED_IP}"]'),
        ("<ip>93.184.216.34</ip>", f"<ip>{MASKED_IP}</ip>"),
        ("host=24.16.33.7", f"host={MASKED_IP}"),
        ("ip.addr == 93.184.216.34", f"ip.addr == {MASKED_IP}"),
        ("for ssh, write to jane@acme.org", f"for ssh, write to {MASKED_EMAIL}"),
        ("ssh keys go to jane@acme.org: thanks", f"ssh keys go to {MASKED_EMAIL}: thanks"),
        ("ping 8.8.8.8", f"ping {MASKED_IP}"),
        ("version 1.2.3.4 runs on host 93.184.216.34", f"version 1.2.3.4 runs on host {MASKED_IP}"),
        ("/ip4/104.131.131.82/tcp/4001", f"/ip4/{MASKED_IP}/tcp/4001"),
        ("see section 4.3.2.1\n93.184.216.34", f"see section 4.3.2.1\n{MASKED_IP}"),
    ],
)
def test_true_addresses_are_masked_whatever_stands_around_them(text, masked):
    assert mask(text)[0] == masked
    assert mask(masked)[0] == masked
