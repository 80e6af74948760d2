"""What the host of an address in a spec must not be.

A pod has the network of its cluster, and maybe an identity there, so an address must not lead it to
the metadata services of clouds, which hand out credentials, or to itself. The schema refuses what
can be read from the text, before anything is stored; the trainer checks every connection, after
names are resolved and redirects followed (`finetune_trainer.runtime.connection_guard`).
"""

from finetune_api.base import RefusedPattern

_QUAD = r"\.[0-9]+\.[0-9]+"
_METADATA = (
    r"metadata(\.google\.internal)?",
    rf"169\.254{_QUAD}",
    r"100\.100\.100\.200",
    r"168\.63\.129\.16",
    r"192\.0\.0\.192",
    r"\[(fe[89ab][0-9a-f]|fd00:0?ec2|fd20:0{0,2}ce):[^\]]*\]",
    r"\[fd00:(0{0,2}42::0{0,2}42|a9fe:a9fe::0{0,3}1)\]",
)
_OTHER_SPELLINGS = (
    r"[0-9]+(\.[0-9]+){0,2}",
    r"([0-9a-fx]+\.){0,3}0x[0-9a-f]*(\.[0-9a-fx]+){0,3}",
    r"([0-9]+\.){0,3}0[0-9]+(\.[0-9]+){0,3}",
    r"\[(0+:[^\]]*|::([^\]1][^\]]*|1[^\]]+))\]",
    r"[^/?#]*[%\\][^/?#]*",
)
_NOWHERE = (rf"0\.[0-9]+{_QUAD}", rf"2(2[4-9]|3[0-9]|55)\.[0-9]+{_QUAD}", r"\[(::|ff[^\]]*)\]")
_LOOPBACK = (r"([^/?#@]*\.)?localhost", rf"127\.[0-9]+{_QUAD}", r"\[::1\]")


def _refuse(hosts: tuple[str, ...], what: str) -> RefusedPattern:
    """Refuses the hosts in the URLs of web servers; other schemes name no host."""
    return RefusedPattern(
        rf"(?i)^https?://([^/?#]*@)?({'|'.join(hosts)})\.?(:[0-9]*)?([/?#]|$)",
        f"must not name {what}: write the name or the plain address of another server",
    )


RefusedServers = _refuse(
    (*_METADATA, *_OTHER_SPELLINGS, *_NOWHERE, *_LOOPBACK),
    "a metadata service, the pod itself, or a link-local or multicast address",
)
"""For the addresses of models and data."""
RefusedTrackers = _refuse(
    (*_METADATA, *_OTHER_SPELLINGS, *_NOWHERE),
    "a metadata service, or a link-local or multicast address",
)
"""For trackers, whose own processes may use the loopback interface."""
RefusedUserInfo = RefusedPattern(
    r"^[a-z0-9]+://[^/?#]*@",
    "must have no user name or password before the host: put them into the Secret that "
    "credentialsSecretRef names",
)
"""The spec of a job is copied to its ConfigMaps and its report, which are not for secrets."""
